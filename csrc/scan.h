// Selective scan on the CPU: the interface between Python (ctypes) and the kernel.
#pragma once

#include <cstdint>

// One scan over length = outer · inner positions, the inner index running fastest. Every tensor is a pointer with
// strides in elements, so that any layout, and a column-major order of an image, is scanned in place.
// All tensors have one type, float or double. Mirrored by `_Problem` in nnunet_mamba_mis/ops/cpp_backend.py.
struct ScanProblem {
    int64_t batch, channels, groups, states, outer, inner;

    // inputs; D and delta_bias may be null, A (channels, states), D and delta_bias (channels) are contiguous
    const void *u, *delta, *A, *B, *C, *D, *delta_bias;
    int64_t u_strides[4], delta_strides[4];  // batch, channel, outer, inner
    int64_t B_strides[5], C_strides[5];      // batch, group, state, outer, inner

    // results of forward; starts (batch, tiles, channels, states) may be null
    void *y, *last_state, *starts;
    int64_t y_strides[4];

    // backward: gradients in, then gradients out; null where there is no such argument
    const void *grad_y, *grad_last_state;
    int64_t grad_y_strides[4];
    void *grad_u, *grad_delta, *grad_A, *grad_B, *grad_C, *grad_D, *grad_delta_bias;
    int64_t grad_u_strides[4], grad_delta_strides[4], grad_B_strides[5], grad_C_strides[5];

    int32_t is_double, softplus, exact;
    int32_t threads;
    // GOMP_parallel of the OpenMP runtime that torch has loaded, or null: sharing its threads avoids two pools that
    // spin against each other on the same cores
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
};

// Positions between two stored states. Shorter tiles store more; longer ones leave the first-level cache in backward.
constexpr int kTile = 32;

// Calls work(index) for every index below count, on the problem's threads; defined in scan.cpp.
void parallel_for(const ScanProblem &problem, int64_t count, void (*work)(void *, int64_t), void *context);

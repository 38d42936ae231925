// Selective scan on the CPU: the interface between Python (ctypes) and the kernel.
#pragma once

#include "threads.h"

// One scan over outer · inner positions, with the inner index running fastest. Every tensor is a pointer with strides in
// elements, so any layout is scanned in place, even an image in column-major order. All tensors have the same type, float
// or double. nnunet_mamba_mis/ops/native_structs.py mirrors this struct.
//
// Δ, B and C are inputs or, with `weight`, linear functions of u that are computed on the fly.
struct ScanProblem {
    int64_t batch, channels, groups, states, outer, inner;

    // Inputs; D, z and delta_bias may be null. These are contiguous: A (channels, states), D and delta_bias (channels),
    // weight (channels, channels) for Δ, and weight_bc (2·states, channels) with rows for B, then C.
    const void *u, *delta, *A, *B, *C, *D, *z, *delta_bias, *weight, *weight_bc;
    int64_t u_strides[4], delta_strides[4], z_strides[4];  // batch, channel, outer, inner
    int64_t B_strides[5], C_strides[5];                    // batch, group, state, outer, inner

    // results of forward; starts (batch, tiles, channels, states) may be null
    void *y, *last_state, *starts;
    int64_t y_strides[4];

    // backward: given gradients of the results, then computed gradients of the inputs; null if the input is null
    const void *grad_y, *grad_last_state;
    int64_t grad_y_strides[4];
    void *grad_u, *grad_delta, *grad_A, *grad_B, *grad_C, *grad_D, *grad_z, *grad_delta_bias, *grad_weight,
        *grad_weight_bc;
    int64_t grad_u_strides[4], grad_delta_strides[4], grad_z_strides[4], grad_B_strides[5], grad_C_strides[5];

    int32_t is_double, softplus, exact;
    int32_t A_is_log;    // whether the state matrix is −e^A; grad_A is the gradient of A itself in both cases
    int32_t add_grad_u;  // whether to add the gradient of u to grad_u instead of overwriting it
    Threads threads;
};

// Positions between two stored states. Shorter tiles store more states; longer ones exceed the L1 cache in backward.
constexpr int kTile = 32;

// Selective scan on the CPU: the interface between Python (ctypes) and the kernel.
#pragma once

#include "threads.h"

// One scan over length = outer · inner positions, the inner index running fastest. Every tensor is a pointer with
// strides in elements, so that any layout, and a column-major order of an image, is scanned in place.
// All tensors have one type, float or double. Mirrored in nnunet_mamba_mis/ops/native_structs.py.
//
// Δ, B and C are either given, or, with `weight`, linear functions of u that are computed as they are needed.
struct ScanProblem {
    int64_t batch, channels, groups, states, outer, inner;

    // inputs; D, z and delta_bias may be null; A (channels, states), D and delta_bias (channels), weight (channels,
    // channels; for Δ) and weight_bc (2·states, channels; rows for B, then C) are contiguous
    const void *u, *delta, *A, *B, *C, *D, *z, *delta_bias, *weight, *weight_bc;
    int64_t u_strides[4], delta_strides[4], z_strides[4];  // batch, channel, outer, inner
    int64_t B_strides[5], C_strides[5];                    // batch, group, state, outer, inner

    // results of forward; starts (batch, tiles, channels, states) may be null
    void *y, *last_state, *starts;
    int64_t y_strides[4];

    // backward: gradients in, then gradients out; null where there is no such argument
    const void *grad_y, *grad_last_state;
    int64_t grad_y_strides[4];
    void *grad_u, *grad_delta, *grad_A, *grad_B, *grad_C, *grad_D, *grad_z, *grad_delta_bias, *grad_weight,
        *grad_weight_bc;
    int64_t grad_u_strides[4], grad_delta_strides[4], grad_z_strides[4], grad_B_strides[5], grad_C_strides[5];

    int32_t is_double, softplus, exact;
    int32_t A_is_log;    // whether A stands for −e^A, of which grad_A then is the gradient
    int32_t add_grad_u;  // whether the gradient of u is added to what is there
    Threads threads;
};

// Positions between two stored states. Shorter tiles store more; longer ones leave the first-level cache in backward.
constexpr int kTile = 32;

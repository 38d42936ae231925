// Depthwise 3×3 convolution: the interface between Python (ctypes) and the kernel.
#pragma once

#include "threads.h"

// y = x ∗ weight + bias with zeros around x, then SiLU if asked for. Features (batch, height, width, channels) are
// contiguous, weight is (channels, 1, 3, 3). All tensors have one type, float or double. Mirrored in
// nnunet_mamba_mis/ops/native_structs.py.
struct DepthwiseProblem {
    Threads threads;
    int32_t is_double, silu;
    int64_t batch, height, width, channels;
    const void *x, *weight, *bias;
    void *y;
    const void *grad_y;
    void *grad_x, *grad_weight, *grad_bias;
};

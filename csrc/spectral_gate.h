// Spectral gate: the interface between Python (ctypes) and the kernel.
#pragma once

#include "threads.h"

// y = irfft2(weight · rfft2(x) + bias), both transforms orthonormal. Features (batch, height, width, channels) are
// contiguous, with an even number of channels; weight and bias are (height, width/2 + 1, channels, 2). All tensors have
// one type, float or double. Mirrored in nnunet_mamba_mis/ops/native_structs.py.
struct GateProblem {
    Threads threads;
    int32_t is_double;
    int64_t batch, height, width, channels;
    const void *x, *weight, *bias;
    void *y;
    void *spectrum;  // of x, kept for backward in `spectrum_size` values; may be null in forward
    const void *grad_y;
    void *grad_x, *grad_weight, *grad_bias;
};

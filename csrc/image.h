// Layers that need whole images: the interface between Python (ctypes) and the kernels.
#pragma once

#include "threads.h"

// Features (batch, height, width, channels) and parameters are contiguous and share one type, float or double.
// Mirrored in nnunet_mamba_mis/ops/native_structs.py.
struct ImageProblem {
    Threads threads;
    int32_t is_double;
    int32_t silu;                              // depthwise convolution: whether SiLU follows
    int64_t batch, height, width, channels;    // of the first input
    int64_t y_height, y_width;                 // of the result
    const void *x[3], *weight, *bias;          // inputs; parameters, if the layer has any
    void *y;
    void *kept;                                // values that forward saves for backward; may be null in forward
    const void *grad_y;
    void *grad_x[3], *grad_weight, *grad_bias;
    int64_t add[3];                            // whether to add each input's gradient to the existing values
};

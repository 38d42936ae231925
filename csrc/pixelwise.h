// Chains of layers that treat each pixel independently: the interface between Python (ctypes) and the kernel.
#pragma once

#include "threads.h"

// A tensor (batch, height, width, channels), with strides in elements
struct PixelTensor {
    void *data;
    int64_t channels;
    int64_t strides[4];
    int64_t add;  // for gradients: whether to add to the existing values
};

// Steps on a stack of features. `load` pushes the next tensor. `concat`, `times` and `plus` pop two entries and push
// their result. Other steps replace the top entry by their result. One entry remains at the end.
enum PixelLayerKind : int32_t { kLoad, kConcat, kNorm, kLinear, kSilu, kTimes, kPlus, kProject };

struct PixelLayer {
    int32_t kind;
    int64_t channels;            // of the result
    const void *weight, *bias;   // norm: (channels); linear: (channels, input channels), (channels); project: no bias
    void *grad_weight, *grad_bias;
    double eps;                  // norm
};

// All tensors share one type, float or double. Mirrored in nnunet_mamba_mis/ops/native_structs.py.
struct PixelProblem {
    Threads threads;
    int32_t is_double;
    int64_t batch, height, width;
    int64_t layers;
    const PixelTensor *tensor, *grad;  // grad: each tensor's gradient, in backward
    const PixelLayer *layer;
    PixelTensor y;  // the result; in backward, its gradient
};

// Sequences of operations, run by one team of threads: the interface between Python (ctypes) and the native code.
#pragma once

#include "threads.h"

// A pixelwise step has a PixelProblem, a scan a ScanProblem, every other step an ImageProblem
enum StepKind : int64_t {
    kPixelwise,
    kScan,
    kDepthwise,
    kSpectralGate,
    kResize,
    kChannelSummary,
    kSpatialConvolution,
    kPixelSummary,
    kAttend
};

struct ProgramStep {
    int64_t kind;
    const void *problem;  // its type depends on the kind
};

// Backward runs the steps from the last to the first. Mirrored in nnunet_mamba_mis/ops/native_structs.py.
struct Program {
    Threads threads;
    int64_t count;
    const ProgramStep *steps;
};

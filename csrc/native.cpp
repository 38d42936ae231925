// The C interface, and threads. Built once for each instruction set into a library of its own: templates of the standard
// library are then not shared between code for an old machine and code for a new one.
#include <atomic>
#include <new>
#include <thread>
#include <vector>

#include "pixelwise_kernel.h"
#include "scan_backward.h"
#include "scan_forward.h"

namespace {

struct Job {
    void (*work)(void *, int64_t);
    void *context;
    int64_t count;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
};

void run_job(void *pointer) {
    Job &job = *static_cast<Job *>(pointer);
    try {
        for (int64_t index = job.next++; index < job.count; index = job.next++) job.work(job.context, index);
    } catch (...) {  // out of memory; no exception may leave a thread, nor enter the OpenMP runtime
        job.failed = true;
        job.next = job.count;
    }
}

template <template <class> class Direction, class S>
void run_scan(const ScanProblem &problem) {
    const Direction<S> scan(problem);
    problem.exact ? scan.template run<true>() : scan.template run<false>();
}

}  // namespace

void parallel_for(const Threads &threads, int64_t count, void (*work)(void *, int64_t), void *context) {
    Job job{work, context, count};
    const int64_t used = threads.count < count ? threads.count : count;
    if (used <= 1) {
        run_job(&job);
    } else if (threads.parallel != nullptr) {
        threads.parallel(run_job, &job, static_cast<unsigned>(used), 0);
    } else {
        std::vector<std::thread> helpers;
        try {
            for (int64_t i = 1; i < used; ++i) helpers.emplace_back(run_job, &job);
        } catch (...) {  // fewer helpers do: those that run take the next piece of work
        }
        run_job(&job);
        for (auto &helper : helpers) helper.join();
    }
    if (job.failed) throw std::bad_alloc();
}

// 0, or 1 when memory runs out: no exception may reach Python
template <class Function>
static int32_t status_of(Function function) {
    try {
        function();
        return 0;
    } catch (...) {
        return 1;
    }
}

#define EXPORT extern "C" __attribute__((visibility("default")))

// Sizes of the structs that Python mirrors (ops/native_structs.py), which refuses a library with others
#define EXPORT_SIZE(Struct) \
    EXPORT int64_t mamba_mis_sizeof_##Struct() { return sizeof(Struct); }
EXPORT_SIZE(Threads)
EXPORT_SIZE(ScanProblem)
EXPORT_SIZE(PixelTensor)
EXPORT_SIZE(PixelLayer)
EXPORT_SIZE(PixelProblem)

EXPORT int32_t mamba_mis_tile() { return kTile; }

// Whether this machine has an instruction set; asked of the baseline library alone.
EXPORT int32_t mamba_mis_machine_has_avx2() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

EXPORT int32_t mamba_mis_machine_has_avx512() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return mamba_mis_machine_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#else
    return 0;
#endif
}

EXPORT int32_t mamba_mis_scan_forward(const ScanProblem *problem) {
    return status_of(
        [&] { problem->is_double ? run_scan<ScanForward, double>(*problem) : run_scan<ScanForward, float>(*problem); });
}

EXPORT int32_t mamba_mis_scan_backward(const ScanProblem *problem) {
    return status_of(
        [&] { problem->is_double ? run_scan<ScanBackward, double>(*problem) : run_scan<ScanBackward, float>(*problem); });
}

EXPORT int32_t mamba_mis_pixelwise_forward(const PixelProblem *problem) {
    return status_of([&] {
        problem->is_double ? PixelLayers<double>(*problem).forward() : PixelLayers<float>(*problem).forward();
    });
}

EXPORT int32_t mamba_mis_pixelwise_backward(const PixelProblem *problem) {
    return status_of([&] {
        problem->is_double ? PixelLayers<double>(*problem).backward() : PixelLayers<float>(*problem).backward();
    });
}

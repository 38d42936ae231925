// The C interface, and threads. Each instruction set has its own library, so that code for old and new machines does
// not share instantiations of the standard library's templates.
#include <atomic>
#include <new>
#include <thread>

#include "attention_kernel.h"
#include "depthwise_kernel.h"
#include "machine.h"
#include "pixelwise_kernel.h"
#include "pool.h"
#include "program.h"
#include "resize_kernel.h"
#include "scan_backward.h"
#include "scan_forward.h"
#include "spectral_gate_kernel.h"

namespace {

struct Job {
    void (*work)(void *, int64_t);
    void *context;
    int64_t count;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
};

void run_job(Job &job) {
    try {
        for (int64_t index = job.next++; index < job.count; index = job.next++) job.work(job.context, index);
    } catch (...) {  // out of memory; exceptions must not leave a thread or enter the OpenMP runtime
        job.failed = true;
        job.next = job.count;
    }
}

// Call work(context) on this thread, and on up to count - 1 others
void run_on(const Threads &threads, int64_t count, void (*work)(void *), void *context) {
    if (threads.parallel != nullptr) {
        threads.parallel(work, context, static_cast<unsigned>(count), 0);
        return;
    }
    Pool::of_this_process().run(count, work, context);
}

// Threads that are reused for several jobs: starting and joining threads takes longer than a small job
class Team {
  public:
    // Run a job from the leading thread. Helpers join when they notice the job. The call returns when all helpers that
    // joined are done.
    void run(Job &job) {
        job_ = &job;
        const uint64_t open = ++round_ << kRound, closed = ++round_ << kRound;
        state_.store(open, std::memory_order_release);
        run_job(job);
        int64_t waited = 0;
        for (uint64_t expected = open; !state_.compare_exchange_weak(expected, closed); expected = open) pause(waited);
    }

    // Help with jobs from another thread until the team is dismissed
    void help() {
        uint64_t seen = 0, state;
        int64_t waited = 0;
        while ((state = state_.load(std::memory_order_acquire)) != kDismissed) {
            const uint64_t round = state >> kRound;
            if (round % 2 == 0 || round == seen || !state_.compare_exchange_weak(state, state + 1)) {
                pause(waited);
                continue;
            }
            seen = round;
            run_job(*job_);
            state_.fetch_sub(1, std::memory_order_release);
            waited = 0;
        }
    }

    void dismiss() { state_.store(kDismissed, std::memory_order_release); }

  private:
    // round · 2^kRound + number of helpers at work; a round is odd while its job is open
    static constexpr int kRound = 32;
    static constexpr uint64_t kDismissed = ~uint64_t(0);
    std::atomic<uint64_t> state_{0};
    uint64_t round_ = 0;
    Job *job_ = nullptr;

    // Spin, since jobs follow each other within microseconds. A thread that waits longer yields to other programs.
    static void pause(int64_t &waited) {
        if (++waited > 20000) std::this_thread::yield();
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }
};

thread_local Team *current_team = nullptr;

// A function, and the team that runs its jobs
struct Session {
    void (*function)(void *);
    void *context;
    std::thread::id leader = std::this_thread::get_id();
    Team team;
    bool failed = false;
};

void join_session(void *pointer) {
    Session &session = *static_cast<Session *>(pointer);
    if (std::this_thread::get_id() != session.leader) return session.team.help();
    current_team = &session.team;
    try {
        session.function(session.context);
    } catch (...) {
        session.failed = true;
    }
    current_team = nullptr;
    session.team.dismiss();
}

// Run a function whose jobs share one team of threads
template <class Function>
void with_team(const Threads &threads, Function function) {
    if (threads.count <= 1) return function();
    Session session{[](void *context) { (*static_cast<Function *>(context))(); }, &function};
    run_on(threads, threads.count, join_session, &session);
    if (session.failed) throw std::bad_alloc();
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
    if (used <= 1)
        run_job(job);
    else if (current_team != nullptr)
        current_team->run(job);
    else
        run_on(threads, used, [](void *pointer) { run_job(*static_cast<Job *>(pointer)); }, &job);
    if (job.failed) throw std::bad_alloc();
}

// Return 0, or 1 if out of memory: exceptions must not reach Python
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

// Sizes of the structs that ops/native_structs.py mirrors. Python rejects a library whose sizes differ.
#define EXPORT_SIZE(Struct) \
    EXPORT int64_t mamba_mis_sizeof_##Struct() { return sizeof(Struct); }
EXPORT_SIZE(Threads)
EXPORT_SIZE(ScanProblem)
EXPORT_SIZE(PixelTensor)
EXPORT_SIZE(PixelLayer)
EXPORT_SIZE(PixelProblem)
EXPORT_SIZE(ImageProblem)
EXPORT_SIZE(ProgramStep)
EXPORT_SIZE(Program)

EXPORT int32_t mamba_mis_tile() { return kTile; }

// Return whether this machine has an instruction set. Python calls these functions only in the baseline library.
EXPORT int32_t mamba_mis_machine_has_avx2() { return machine_has_avx2(); }
EXPORT int32_t mamba_mis_machine_has_avx512() { return machine_has_avx512(); }

namespace {

enum Direction { kForward, kBackward };

template <template <class> class Kernel, class S, class Problem>
void run_in(const Problem &p, Direction direction) {
    const Kernel<S> kernel(p);
    direction == kForward ? kernel.forward() : kernel.backward();
}

template <template <class> class Kernel, class Problem>
void run(const Problem &p, Direction direction) {
    p.is_double ? run_in<Kernel, double>(p, direction) : run_in<Kernel, float>(p, direction);
}

void run(const ScanProblem &p, Direction direction) {
    if (direction == kForward)
        p.is_double ? run_scan<ScanForward, double>(p) : run_scan<ScanForward, float>(p);
    else
        p.is_double ? run_scan<ScanBackward, double>(p) : run_scan<ScanBackward, float>(p);
}

void run(const PixelProblem &p, Direction direction) { run<PixelLayers>(p, direction); }

void run(const ProgramStep &step, Direction direction) {
    const auto &image = *static_cast<const ImageProblem *>(step.problem);
    switch (step.kind) {
        case kPixelwise: return run(*static_cast<const PixelProblem *>(step.problem), direction);
        case kScan: return run(*static_cast<const ScanProblem *>(step.problem), direction);
        case kDepthwise: return run<Depthwise>(image, direction);
        case kSpectralGate: return run<SpectralGate>(image, direction);
        case kResize: return run<Resize>(image, direction);
        case kChannelSummary: return run<ChannelSummary>(image, direction);
        case kSpatialConvolution: return run<SpatialConvolution>(image, direction);
        case kPixelSummary: return run<PixelSummary>(image, direction);
        case kAttend: return run<Attend>(image, direction);
    }
}

}  // namespace

EXPORT int32_t mamba_mis_scan_forward(const ScanProblem *problem) {
    return status_of([&] { run(*problem, kForward); });
}

EXPORT int32_t mamba_mis_scan_backward(const ScanProblem *problem) {
    return status_of([&] { run(*problem, kBackward); });
}

EXPORT int32_t mamba_mis_pixelwise_forward(const PixelProblem *problem) {
    return status_of([&] { run(*problem, kForward); });
}

EXPORT int32_t mamba_mis_pixelwise_backward(const PixelProblem *problem) {
    return status_of([&] { run(*problem, kBackward); });
}

EXPORT int64_t mamba_mis_spectrum_size(const ImageProblem *problem) {
    return problem->is_double ? SpectralGate<double>(*problem).spectrum_size() : SpectralGate<float>(*problem).spectrum_size();
}

EXPORT int32_t mamba_mis_program_forward(const Program *program) {
    return status_of([&] {
        with_team(program->threads, [&] {
            for (int64_t i = 0; i < program->count; ++i) run(program->steps[i], kForward);
        });
    });
}

EXPORT int32_t mamba_mis_program_backward(const Program *program) {
    return status_of([&] {
        with_team(program->threads, [&] {
            for (int64_t i = program->count - 1; i >= 0; --i) run(program->steps[i], kBackward);
        });
    });
}

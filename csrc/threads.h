// Parallel loops on several threads.
#pragma once

#include <cstdint>

struct Threads {
    int64_t count;
    // GOMP_parallel of the OpenMP runtime that torch has loaded, or null for threads of our own (pool.h): sharing
    // torch's threads avoids two pools on the same cores
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
};

// Call work(context, index) for every index below count; defined in native.cpp.
void parallel_for(const Threads &threads, int64_t count, void (*work)(void *, int64_t), void *context);

template <class Work>
void for_each(const Threads &threads, int64_t count, Work work) {
    parallel_for(threads, count, [](void *context, int64_t i) { (*static_cast<Work *>(context))(i); }, &work);
}

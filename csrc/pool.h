// Threads of our own, for processes in which torch's OpenMP runtime is not found.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#if !defined(_WIN32)
#include <unistd.h>
#endif

// Threads that sleep between operations. An operation that needs more threads than exist starts the missing ones.
// Threads and pool are never destroyed: a sleeping thread holds nothing that the end of the process could damage. A
// forked process has none of its parent's threads, so it makes its own pool.
class Pool {
  public:
    static Pool &of_this_process() {
        static std::atomic<Pool *> latest{nullptr};
        Pool *found = latest.load(std::memory_order_acquire);
        while (found == nullptr || found->process_ != process()) {
            Pool *made = new Pool;
            if (latest.compare_exchange_strong(found, made)) return *made;
            delete made;  // another thread was faster
        }
        return *found;
    }

    // Call work(context) on this thread, and on up to count - 1 others that join while this thread works. If another
    // thread is using the pool, this thread works alone.
    void run(int64_t count, void (*work)(void *), void *context) {
        const bool leads = open(count - 1, work, context);
        if (leads) opened_.notify_all();
        work(context);
        if (leads) close();
    }

  private:
    std::mutex mutex_;
    std::condition_variable opened_, left_;
    const int64_t process_ = process();
    int64_t threads_ = 0, places_ = 0, working_ = 0;
    bool in_use_ = false;
    void (*work_)(void *) = nullptr;
    void *context_ = nullptr;

    bool open(int64_t places, void (*work)(void *), void *context) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (in_use_) return false;
        in_use_ = true;
        work_ = work;
        context_ = context;
        places_ = places;
        try {
            for (; threads_ < places; ++threads_) std::thread(&Pool::help, this).detach();
        } catch (...) {  // fewer threads suffice: each takes the next piece of work when it is free
        }
        return true;
    }

    void close() {
        std::unique_lock<std::mutex> lock(mutex_);
        places_ = 0;
        left_.wait(lock, [this] { return working_ == 0; });
        in_use_ = false;
    }

    void help() {
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            opened_.wait(lock, [this] { return places_ > 0; });
            --places_;
            ++working_;
            const auto work = work_;
            void *const context = context_;
            lock.unlock();
            work(context);
            lock.lock();
            if (--working_ == 0) left_.notify_one();
        }
    }

    static int64_t process() {
#if defined(_WIN32)
        return 0;  // processes do not fork
#else
        return getpid();
#endif
    }
};

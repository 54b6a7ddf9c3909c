#include "runtime/threads.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>

namespace smolvla {
namespace {

// About 50 us of polling: longer than the gap between two layers, shorter than a control tick.
constexpr int kSpins = 20000;

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// cgroup v2 `cpu.max` ("quota period" or "max period"), then v1; 0 means no limit.
double cgroup_quota() {
    long long quota = 0, period = 0;
    if (FILE* f = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
        const int got = std::fscanf(f, "%lld %lld", &quota, &period);
        std::fclose(f);
        return got == 2 && quota > 0 && period > 0 ? double(quota) / double(period) : 0;
    }
    FILE* q = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r");
    FILE* p = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r");
    const bool ok = q && p && std::fscanf(q, "%lld", &quota) == 1 &&
                    std::fscanf(p, "%lld", &period) == 1 && quota > 0 && period > 0;
    if (q) std::fclose(q);
    if (p) std::fclose(p);
    return ok ? double(quota) / double(period) : 0;
}

}  // namespace

int default_threads() {
    cpu_set_t set;
    int cores = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
    const double quota = cgroup_quota();
    if (quota > 0) cores = std::min(cores, static_cast<int>(quota + 0.5));
    return std::max(1, cores);
}

ThreadPool::ThreadPool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
        generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (std::thread& t : workers_) t.join();
}

void ThreadPool::drain(int thread) {
    for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < items_;)
        call_(context_, i, thread);
}

void ThreadPool::start(int items, Call call, const void* context) {
    call_ = call;
    context_ = context;
    items_ = items;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1);  // seq_cst: ordered with the parked_ check below
    if (parked_.load() > 0) {
        std::lock_guard<std::mutex> lock(mutex_);  // a worker is either waiting or yet to re-check
        wake_.notify_all();
    }
    drain(0);
    for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins) {
        if (spins < kSpins)
            relax();
        else
            sched_yield();
    }
}

void ThreadPool::work(int thread) {
    unsigned seen = 0;
    for (;;) {
        int spins = 0;
        while (generation_.load(std::memory_order_acquire) == seen) {
            if (++spins < kSpins) {
                relax();
                continue;
            }
            std::unique_lock<std::mutex> lock(mutex_);
            parked_.fetch_add(1);
            wake_.wait(lock, [&] { return generation_.load() != seen; });
            parked_.fetch_sub(1);
        }
        seen = generation_.load(std::memory_order_acquire);
        if (stop_) return;
        drain(thread);
        busy_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace smolvla

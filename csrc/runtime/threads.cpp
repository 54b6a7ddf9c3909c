#include "runtime/threads.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <system_error>

#include "runtime/error.h"

namespace smolvla {
namespace {

// About 50 us of polling: longer than the gap between two layers, shorter than a control tick.
constexpr int kSpins = 20000;

// The fields of ThreadPool::state_.
constexpr uint64_t kOpen = uint64_t{1} << 16, kInside = kOpen - 1, kNextJob = kOpen << 1;

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
    return std::clamp(cores, 1, kMaxThreads);
}

ThreadPool::ThreadPool(int threads) : owner_(getpid()) {
    workers_.reserve(static_cast<size_t>(std::max(threads, 1)));
    try {
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error& error) {
        stop();
        fail(ErrorKind::backend,
             "expected to start %d threads, the system refused after %d (%s); ask for fewer or "
             "raise the limits (ulimit -u, -v)",
             threads, size(), error.code().message().c_str());
    }
}

ThreadPool::~ThreadPool() {
    if (getpid() == owner_) {
        stop();
        return;
    }
    // A fork copied this object but not its threads. Joining them, or destroying the condition
    // variable that they wait on, would never return; the child gives up a few bytes instead.
    new std::vector<std::thread>(std::move(workers_));
    (void)parking_.release();
}

void ThreadPool::stop() {
    {
        std::lock_guard<std::mutex> lock(parking_->mutex);
        stop_ = true;
        state_.fetch_add(kNextJob);
    }
    parking_->wake.notify_all();
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
    // Nobody is inside: the job before was waited for. seq_cst orders this with the parked_ check.
    const uint64_t job = state_.load(std::memory_order_relaxed) / kNextJob + 1;
    state_.store(job * kNextJob | kOpen);
    if (parked_.load() > 0) {
        // With the lock, a worker is either waiting or yet to re-check.
        std::lock_guard<std::mutex> lock(parking_->mutex);
        parking_->wake.notify_all();
    }
    drain(0);
    uint64_t state = state_.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spins = 0; (state & kInside) != 0; ++spins) {
        if (spins < kSpins)
            relax();
        else
            sched_yield();
        state = state_.load(std::memory_order_acquire);
    }
}

void ThreadPool::work(int thread) {
    uint64_t seen = 0;  // job number
    for (;;) {
        uint64_t state = state_.load(std::memory_order_acquire);
        for (int spins = 0; state / kNextJob == seen; ++spins) {
            if (spins < kSpins) {
                relax();
            } else {
                std::unique_lock<std::mutex> lock(parking_->mutex);
                parked_.fetch_add(1);
                parking_->wake.wait(lock, [&] { return state_.load() / kNextJob != seen; });
                parked_.fetch_sub(1);
                spins = 0;
            }
            state = state_.load(std::memory_order_acquire);
        }
        if (stop_) return;
        seen = state / kNextJob;
        // A failed exchange reloads `state`: another worker came or went, or the job closed.
        while ((state & kOpen) && state / kNextJob == seen)
            if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) {
                drain(thread);
                state_.fetch_sub(1, std::memory_order_release);
                break;
            }
    }
}

}  // namespace smolvla

// A small pool: the caller is thread 0, the others spin for a moment after each job and then park.
//
// A robot's cores are shared, so nobody waits for a thread that is not running: items are handed
// out one by one, a worker that the system has not scheduled yet simply misses the job, and the
// caller waits only for workers that took part. Which thread ran an item never shows in a result:
// every item writes its own output and no kernel adds across items.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace smolvla {

constexpr int kMaxThreads = 256;

// What the items of an operation run on: a pool of ours, or the threads of a program that calls us.
class Workers {
public:
    // How many threads may take part; `thread` below is less.
    virtual int size() const = 0;

    // Calls body(item, thread) for every item in [0, items), each exactly once; returns when all
    // are done. No two calls with one `thread` overlap. `body` must not throw. No allocation.
    template <class Body>
    void run(int items, const Body& body) {
        if (items <= 0) return;
        if (items == 1 || size() == 1) {
            for (int i = 0; i < items; ++i) body(i, 0);
            return;
        }
        start(
            items,
            [](const void* context, int item, int thread) {
                (*static_cast<const Body*>(context))(item, thread);
            },
            &body);
    }

    // The same for a body that may throw: the first exception is rethrown when all items are done.
    template <class Body>
    void run_fallible(int items, const Body& body) {
        std::exception_ptr fault;
        std::atomic<bool> failed{false};
        run(items, [&](int item, int thread) {
            try {
                body(item, thread);
            } catch (...) {
                if (!failed.exchange(true)) fault = std::current_exception();
            }
        });
        if (fault) std::rethrow_exception(fault);
    }

protected:
    using Call = void (*)(const void* context, int item, int thread);

    ~Workers() = default;
    virtual void start(int items, Call call, const void* context) = 0;
};

class ThreadPool final : public Workers {
public:
    // Raises a backend error when the system grants fewer threads.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const override { return static_cast<int>(workers_.size()) + 1; }

private:
    void start(int items, Call call, const void* context) override;
    void drain(int thread);
    void work(int thread);
    void stop();

    std::vector<std::thread> workers_;
    // The job; written by the caller before it opens `state_`, read by workers that entered it.
    Call call_ = nullptr;
    const void* context_ = nullptr;
    int items_ = 0;
    alignas(64) std::atomic<int> next_{0};
    // One word: job number << 17 | open << 16 | workers inside. A worker enters by a
    // compare-exchange on all three, so it cannot enter a job that has closed or been replaced.
    alignas(64) std::atomic<uint64_t> state_{0};
    std::atomic<int> parked_{0};
    std::atomic<bool> stop_{false};
    struct Parking {
        std::mutex mutex;
        std::condition_variable wake;
    };
    std::unique_ptr<Parking> parking_ = std::make_unique<Parking>();
    const pid_t owner_;
};

// Cores this process may use: the affinity mask, cut by the cgroup CPU quota; 1 to kMaxThreads.
int default_threads();

}  // namespace smolvla

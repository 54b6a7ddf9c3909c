// The threads of the session that runs a kernel. A pool of ours beside them would fight for the
// same cores, and would not obey the session's intra_op_num_threads.
#pragma once

#include <algorithm>
#include <atomic>

#include "ort/abi.h"
#include "runtime/threads.h"

namespace smolvla::ort {

// Lives as long as one call of a kernel.
class SessionWorkers final : public Workers {
public:
    SessionWorkers(const Api& api, const KernelContext* context, int most)
        : api_(api), context_(context), size_(most) {}

    int size() const override { return size_; }

private:
    // The runtime does not say which of its threads runs an item, and ours need a number for their
    // scratch: its items are therefore threads of ours, each of which takes items until none is
    // left. Of more than the session has threads, the last find nothing to do.
    void start(int items, Call call, const void* context) override {
        struct Job {
            Call call;
            const void* context;
            int items;
            std::atomic<int> next{0};
            void drain(int thread) {
                for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;)
                    call(context, i, thread);
            }
        } job{call, context, items};
        Status* failed = api_.parallel_for(
            context_,
            [](void* job, size_t thread) {
                static_cast<Job*>(job)->drain(static_cast<int>(thread));
            },
            static_cast<size_t>(std::min(size_, items)), 0, &job);
        if (failed) api_.release_status(failed);
        job.drain(0);  // what a runtime that failed has left
    }

    const Api& api_;
    const KernelContext* const context_;
    const int size_;
};

// While a session is made there is nobody to share with.
class CallerAlone final : public Workers {
public:
    int size() const override { return 1; }

private:
    void start(int, Call, const void*) override {}  // of one thread, `run` starts nothing
};

}  // namespace smolvla::ort

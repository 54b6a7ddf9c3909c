#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"
#include "runtime/threads.h"

int main() {
    CHECK(smolvla::default_threads() >= 1);
    for (int size : {1, 2, 3, 5}) {
        smolvla::ThreadPool pool(size);
        CHECK(pool.size() == size);
        for (int round = 0; round < 2000; ++round) {
            const int items = round % 17;
            std::vector<std::atomic<int>> seen(static_cast<size_t>(items));
            std::atomic<bool> thread_in_range{true};
            pool.run(items, [&](int item, int thread) {
                seen[static_cast<size_t>(item)]++;
                if (thread < 0 || thread >= size) thread_in_range = false;
            });
            for (const auto& count : seen) CHECK(count == 1);
            CHECK(thread_in_range);
        }
        // Long enough for the workers to park; the next job must wake them.
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        std::atomic<int> total{0};
        pool.run(100, [&](int item, int) { total += item; });
        CHECK(total == 4950);
    }
    return report("threads");
}

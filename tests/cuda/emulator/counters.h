#pragma once

#include <atomic>
#include <cstdint>

namespace emulator {

struct AtomicCounters {
    std::atomic<uint64_t> kernels{0}, graph_launches{0}, copies{0};
};
extern AtomicCounters counted;

}  // namespace emulator

#pragma once

#include <algorithm>
#include <cstddef>

#include "control.h"

namespace emulator {

// As shared memory and threads allow it; registers are the compile gates' matter (tests/compile).
inline int blocks_per_multiprocessor(int threads, size_t shared_bytes) {
    const DeviceModel& d = device_model();
    const int rounded = (threads + 31) / 32 * 32;
    return std::min({d.blocks_per_multiprocessor, d.threads_per_multiprocessor / rounded,
                     d.shared_per_multiprocessor / int(shared_bytes + 1024)});
}

}  // namespace emulator

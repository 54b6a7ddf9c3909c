// Under ThreadSanitizer every fiber is a thread of its own, ordered by barriers alone: a missing
// __syncthreads is reported as the race that it is. Without it these are nothing.
#pragma once

#include "fiber.h"

#if defined(EMULATOR_TSAN)
extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
}
#endif

namespace emulator {

#if defined(EMULATOR_TSAN)
inline void races_acquire(void* address) { __tsan_acquire(address); }
inline void races_release(void* address) { __tsan_release(address); }
#else
inline void races_acquire(void*) {}
inline void races_release(void*) {}
#endif

}  // namespace emulator

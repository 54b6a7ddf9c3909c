// A fiber: a stack and where it stopped. The switch saves what the calling convention says a
// function must keep, nothing else (x86-64 and aarch64; about 2 ns), and tells the sanitizers.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATOR_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define EMULATOR_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define EMULATOR_TSAN 1
#endif
#endif

extern "C" void emulator_switch(void** save, void* load);

namespace emulator {

struct Fiber {
    void* stack_pointer = nullptr;
    void* stack = nullptr;  // lowest address; null: the thread's own stack
    size_t stack_bytes = 0;
    void* fake_stack = nullptr;  // the address sanitizer's
    void* race_state = nullptr;  // the thread sanitizer's
};

// Makes `fiber` start `entry` on its stack at the next switch to it. entry never returns.
// `first_down`: bytes left free at the top, so that not all stacks fall into the same cache sets.
void prepare(Fiber& fiber, void (*entry)(), size_t first_down);
void forget(Fiber& fiber);

#if defined(EMULATOR_ASAN) || defined(EMULATOR_TSAN)
// From inside `from` to `to`; comes back when something switches to `from`.
void switch_fiber(Fiber& from, Fiber& to);
// First thing on a new fiber.
void entered();
#else
inline void switch_fiber(Fiber& from, Fiber& to) {
    emulator_switch(&from.stack_pointer, to.stack_pointer);
}
inline void entered() {}
#endif

}  // namespace emulator

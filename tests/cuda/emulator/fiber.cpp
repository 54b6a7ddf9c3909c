#include "fiber.h"

#include <cstdint>
#include <cstring>

#if defined(EMULATOR_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(EMULATOR_TSAN)
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void* __tsan_get_current_fiber();
}
#endif

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.type emulator_switch, @function
.globl emulator_switch
.hidden emulator_switch
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
constexpr size_t kFrameWords = 8;  // six registers, the entry, no caller
constexpr size_t kEntryWord = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.type emulator_switch, %function
.globl emulator_switch
.hidden emulator_switch
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_switch, .-emulator_switch
)");
constexpr size_t kFrameWords = 20;
constexpr size_t kEntryWord = 11;  // x30
#else
#error "the emulator switches fibers on x86-64 and aarch64 only"
#endif

namespace emulator {

void prepare(Fiber& fiber, void (*entry)(), size_t first_down) {
    char* top = static_cast<char*>(fiber.stack) + fiber.stack_bytes - first_down;
    top -= reinterpret_cast<uintptr_t>(top) % 16;
#if defined(EMULATOR_ASAN)
    ASAN_UNPOISON_MEMORY_REGION(fiber.stack, fiber.stack_bytes);  // of frames that were left behind
#endif
    void** frame = reinterpret_cast<void**>(top) - kFrameWords;
    std::memset(frame, 0, kFrameWords * sizeof(void*));
    frame[kEntryWord] = reinterpret_cast<void*>(entry);
    fiber.stack_pointer = frame;
    fiber.fake_stack = nullptr;
#if defined(EMULATOR_TSAN)
    if (fiber.race_state) __tsan_destroy_fiber(fiber.race_state);
    fiber.race_state = __tsan_create_fiber(0);
#endif
}

void forget(Fiber& fiber) {
#if defined(EMULATOR_TSAN)
    if (fiber.stack && fiber.race_state) __tsan_destroy_fiber(fiber.race_state);
#endif
    fiber.race_state = nullptr;
}

#if defined(EMULATOR_ASAN) || defined(EMULATOR_TSAN)
namespace {
thread_local Fiber* arriving = nullptr;
thread_local Fiber* leaving = nullptr;
}  // namespace

void entered() {
#if defined(EMULATOR_ASAN)
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(arriving->fake_stack, &bottom, &bytes);
    if (!leaving->stack) {  // a thread's own stack: its bounds are learnt here
        leaving->stack_bytes = bytes;
        leaving->stack = const_cast<void*>(bottom);
    }
#endif
}

void switch_fiber(Fiber& from, Fiber& to) {
    arriving = &to;
    leaving = &from;
#if defined(EMULATOR_ASAN)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
#if defined(EMULATOR_TSAN)
    if (!from.race_state) from.race_state = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to.race_state, 1);  // 1: no happens-before by the switch itself
#endif
    emulator_switch(&from.stack_pointer, to.stack_pointer);
    entered();
}
#endif

}  // namespace emulator

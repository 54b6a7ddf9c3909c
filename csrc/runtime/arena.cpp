#include "runtime/arena.h"

#include <sys/mman.h>

#include <algorithm>

#include "runtime/error.h"

#if defined(__has_feature)
#define SMOLVLA_ASAN __has_feature(address_sanitizer)  // clang
#elif defined(__SANITIZE_ADDRESS__)
#define SMOLVLA_ASAN 1
#else
#define SMOLVLA_ASAN 0
#endif
#if SMOLVLA_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace smolvla {
namespace {

constexpr size_t kAlign = 64;
constexpr size_t kHugePage = size_t{2} << 20;

// Buffers lie side by side in one mapping, where the address sanitizer sees no boundaries: in its
// builds a line is left between two buffers and poisoned, and so is what follows the last one (not
// all of the mapping: shadow memory for gigabytes that nobody touches would cost real memory).
#if SMOLVLA_ASAN
constexpr size_t kGap = 64, kGuard = size_t{64} << 10;
void poison(void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
void unpoison(void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
constexpr size_t kGap = 0, kGuard = 0;
void poison(void*, size_t) {}
void unpoison(void*, size_t) {}
#endif

}  // namespace

Arena::Arena(size_t capacity_bytes)
    : capacity_((capacity_bytes + kHugePage - 1) / kHugePage * kHugePage) {
    void* p = mmap(nullptr, capacity_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        fail(
            ErrorKind::backend,
            "cannot reserve %zu MiB of address space; raise the limit (ulimit -v) or use a smaller "
            "model",
            capacity_ >> 20);
    base_ = static_cast<char*>(p);
    madvise(base_, capacity_, MADV_HUGEPAGE);  // advice only; a refusal changes speed, not results
    poison(base_, std::min(kGuard, capacity_));
}

Arena::~Arena() {
    // The addresses may be mapped again.
    unpoison(base_, std::min(used_ + kGuard, capacity_));
    munmap(base_, capacity_);
}

const char* Arena::image() const {
    unpoison(base_, used_);
    return base_;
}

size_t Arena::room_of(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign + kGap; }

void* Arena::allocate(size_t bytes) {
    const size_t rounded = room_of(bytes);
    if (rounded < bytes || rounded > capacity_ - used_)
        fail(ErrorKind::backend, "arena of %zu MiB is full: %zu bytes asked, %zu left",
             capacity_ >> 20, bytes, capacity_ - used_);
    void* p = base_ + used_;
    used_ += rounded;
    char* end = static_cast<char*>(p) + bytes;
    poison(end, std::min(rounded - bytes + kGuard, size_t(base_ + capacity_ - end)));
    unpoison(p, bytes);
    return p;
}

}  // namespace smolvla

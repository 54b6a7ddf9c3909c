#include "runtime/arena.h"

#include <sys/mman.h>

#include "runtime/error.h"

namespace smolvla {
namespace {
constexpr size_t kAlign = 64;
constexpr size_t kHugePage = size_t{2} << 20;
}  // namespace

Arena::Arena(size_t capacity_bytes)
    : capacity_((capacity_bytes + kHugePage - 1) / kHugePage * kHugePage) {
    void* p = mmap(nullptr, capacity_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        fail(ErrorKind::backend, "cannot reserve %zu MiB of address space", capacity_ >> 20);
    base_ = static_cast<char*>(p);
    madvise(base_, capacity_, MADV_HUGEPAGE);  // advice only; a refusal changes speed, not results
}

Arena::~Arena() { munmap(base_, capacity_); }

void* Arena::allocate(size_t bytes) {
    const size_t rounded = (bytes + kAlign - 1) / kAlign * kAlign;
    if (rounded < bytes || rounded > capacity_ - used_)
        fail(ErrorKind::backend, "arena of %zu MiB is full: %zu bytes asked, %zu left",
             capacity_ >> 20, bytes, capacity_ - used_);
    void* p = base_ + used_;
    used_ += rounded;
    return p;
}

}  // namespace smolvla

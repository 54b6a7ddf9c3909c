#include "ort/scratch.h"

#include <atomic>
#include <cstring>
#include <new>

#include "runtime/error.h"

namespace smolvla::ort {
namespace {

constexpr std::align_val_t kAlign{64};

}  // namespace

void FreeBlock::operator()(char* block) const { ::operator delete(block, kAlign); }

Block make_block(size_t bytes) {
    Block block(static_cast<char*>(::operator new(bytes, kAlign)));
    std::memset(block.get(), 0, bytes);
    return block;
}

struct Scratch::Held {
    Block block;
    size_t floats;
};

// The runtime unloads this library with the last session that uses it: what waits is freed then.
struct Scratch::Waiting {
    std::atomic<Held*> slots[kWaiting];
    ~Waiting() {
        for (std::atomic<Held*>& slot : slots) delete slot.exchange(nullptr);
    }
    static Waiting all;
};
Scratch::Waiting Scratch::Waiting::all{};

Scratch::Held* Scratch::take(size_t floats) {
    for (std::atomic<Held*>& slot : Waiting::all.slots) {
        if (!slot.load(std::memory_order_relaxed)) continue;
        Held* held = slot.exchange(nullptr, std::memory_order_acquire);
        if (!held) continue;
        if (held->floats >= floats) return held;
        delete held;  // too small once, too small again
    }
    return new Held{make_block(floats * sizeof(float)), floats};
}

Scratch::Scratch(size_t floats) : held_(take(floats)) {}

Scratch::~Scratch() {
    for (std::atomic<Held*>& slot : Waiting::all.slots) {
        Held* nobody = nullptr;
        if (slot.compare_exchange_strong(nobody, held_, std::memory_order_release)) return;
    }
    delete held_;
}

float* Scratch::floats(size_t count) {
    if (used_ + room(count) > held_->floats)
        fail(ErrorKind::backend, "a kernel asked for %zu floats of scratch, %zu are left", count,
             held_->floats - used_);
    float* piece = reinterpret_cast<float*>(held_->block.get()) + used_;
    used_ += room(count);
    return piece;
}

}  // namespace smolvla::ort

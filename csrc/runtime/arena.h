// A bump allocator over one reserved mapping. Weights (weight_store.h) and activations live in two
// of these; both are filled while the engine is built, so that predict() allocates nothing
// (tests/cpp/test_engine.cpp counts). Reserved but untouched pages cost no memory; huge pages are
// asked for because a packed weight is read in one long stream and 4 KiB pages would miss the TLB
// on every other panel.
#pragma once

#include <cstddef>

namespace smolvla {

class Arena {
public:
    explicit Arena(size_t capacity_bytes);
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // 64-byte aligned and zeroed (fresh anonymous pages).
    void* allocate(size_t bytes);
    float* floats(size_t count) { return static_cast<float*>(allocate(count * sizeof(float))); }
    size_t used_bytes() const { return used_; }
    // All used bytes as one run, the gaps of sanitizer builds included (no longer poisoned then).
    const char* image() const;
    // What a buffer takes: bytes rounded up, and in sanitizer builds a gap behind them. Below
    // `bytes` when the sum overflows.
    static size_t room_of(size_t bytes);

private:
    char* base_;
    size_t capacity_;
    size_t used_ = 0;
};

}  // namespace smolvla

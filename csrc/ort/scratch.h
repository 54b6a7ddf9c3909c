// Memory that a kernel works in while it computes.
#pragma once

#include <cstddef>
#include <memory>

namespace smolvla::ort {

struct FreeBlock {
    void operator()(char* block) const;
};
using Block = std::unique_ptr<char, FreeBlock>;
Block make_block(size_t bytes);  // 64-byte aligned, zeroed

// One call's, handed out piece by piece. Blocks outlive calls: a few wait in slots for the next
// call of any kernel, taken and put back by exchanging a pointer, so that sessions which several
// threads run never wait for each other and never share a block. The process keeps at most
// kWaiting of them, each as large as the largest call needed.
class Scratch {
public:
    static constexpr int kWaiting = 16;

    explicit Scratch(size_t floats);  // the sum of what is asked for, each rounded up by room()
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    static constexpr size_t room(size_t floats) { return (floats + 15) / 16 * 16; }
    float* floats(size_t count);  // 64-byte aligned; holds anything

private:
    struct Held;
    struct Waiting;
    static Held* take(size_t floats);

    Held* held_;
    size_t used_ = 0;
};

}  // namespace smolvla::ort

// A block in the making: fibers with stacks, warps, shared memory. Kept from block to block.
#pragma once

#include "grid.h"

namespace emulator {

struct Block {
    Block(Executor& executor, int threads, size_t shared_bytes);
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    void begin(uint3 index, std::mt19937& random, bool shuffled);
    void check_shared_edges() const;
    Lane* pick(Warp* from, uint32_t after_position);
    Lane* next(const Lane& stopped);  // somebody else to run; a fault when nobody can
    void finish_lane(Lane& lane);
    void release_barrier();
    [[noreturn]] void explain_stuck() const;

    Executor& executor;
    uint3 index = {};
    int threads;
    int live = 0;
    int arrived = 0;  // at the barrier
    unsigned barriers_passed = 0;
    // Addresses for races.h.
    char barrier_order[2], begin_order, end_order;
    std::vector<Lane> lanes;
    std::vector<Warp> warps;
    std::vector<Warp*> order;
    unsigned char* shared = nullptr;
    size_t shared_bytes;

private:
    void* stacks_ = nullptr;
    size_t stacks_bytes_ = 0;
    unsigned char* shared_room_ = nullptr;
    size_t shared_room_bytes_ = 0;
};

void switch_to(Lane* to);  // from the current lane

class Executor {
public:
    // Runs every block of the grid, one after the other.
    void run(const KernelCall& work);
    // After an error: the fibers stand in the middle of a kernel that is not finished.
    void abandon();

    const KernelCall* call = nullptr;
    std::mt19937 random;
    bool shuffled = false;
    Fiber main;
    std::exception_ptr error;

private:
    std::unique_ptr<Block> block_;
};

}  // namespace emulator

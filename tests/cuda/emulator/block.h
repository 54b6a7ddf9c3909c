// A block in the making: fibers with stacks, warps, shared memory. Kept from block to block.
#pragma once

#include "grid.h"

namespace emulator {

struct Grid {
    const KernelCall* call;
    std::vector<uint32_t> order;  // of blocks; empty: as numbered
    uint32_t blocks;
};

struct Block {
    Block(Executor& executor, int threads, size_t shared_bytes);
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    void begin(uint3 index, std::mt19937& random, bool shuffled);
    void check_shared_edges() const;
    Lane* pick(Warp* from, uint32_t after_position);
    void finish_lane(Lane& lane);
    void release_barrier(int barrier);
    void explain_stuck();
    bool has_ready() const;

    Executor& executor;
    uint3 index = {};
    int threads;
    int live = 0;
    int barrier_arrived[kBarriers] = {}, barrier_expected[kBarriers] = {};
    unsigned barrier_passed[kBarriers] = {};
    // Addresses for races.h.
    char barrier_order[kBarriers][2], begin_order, end_order;
    std::vector<Lane> lanes;
    std::vector<Warp> warps;
    std::vector<Warp*> order;
    unsigned char* shared = nullptr;
    size_t shared_bytes;
    bool started = false;

private:
    void* stacks_ = nullptr;
    size_t stacks_bytes_ = 0;
    unsigned char* shared_room_ = nullptr;
    size_t shared_room_bytes_ = 0;
};

class Executor {
public:
    ~Executor();
    // Runs blocks taken from `next` until there are none.
    void run(const Grid& grid, uint32_t (*take)(void*), void* state, int most_resident);
    // After an error: the fibers stand in the middle of a kernel that is not finished.
    void abandon();

    // Called on a fiber.
    void leave_block();  // finished or spinning: the main fiber goes on
    void next_or_leave(Block& block);

    const Grid* grid = nullptr;
    std::mt19937 random;
    bool shuffled = false;
    Fiber main;
    std::exception_ptr error;
    uint64_t operations = 0;

private:
    std::vector<std::unique_ptr<Block>> idle_, resident_;
};

}  // namespace emulator

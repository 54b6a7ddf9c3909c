// Runs a kernel: every thread of a block is a fiber. A fiber runs until its warp has to meet
// (shuffle, mma, ldmatrix, __syncwarp) or its block has to (__syncthreads); the last to arrive does
// the work of the meeting and goes on, the others become runnable.
//
//     lanes and positions   lane l of a warp runs at position p of the warp's order; without a seed
//                           p == l. Masks named *positions are by p, masks named *lanes are by l.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "control.h"
#include "fiber.h"

namespace emulator {

constexpr int kLanes = 32;
constexpr uint32_t kAll = 0xffffffffu;
constexpr uint32_t kSharedBase = 1024;  // no shared address is 0

struct Block;
struct Lane;
struct Warp;
class Executor;

// One kind of warp-wide operation; its address is its identity.
struct WarpOperation {
    const char* name;
    bool all_lanes;  // every one of the 32 must exist and take part
    void (*run)(Warp& warp, uint32_t lanes);
};

constexpr int kPieceBytes = 16;  // a copy of cp.async, and what a lane reads for ldmatrix
struct PendingCopy {
    void* to;
    alignas(kPieceBytes) unsigned char data[kPieceBytes];
};

struct alignas(64) Lane {
    // What every switch looks at, in one cache line.
    Warp* warp = nullptr;
    uint32_t position_bit = 0;
    int lane = 0;  // in the warp
    uint3 thread = {};
    int number = 0;  // in the block
    Fiber fiber;

    bool finished = false;
    // Waiting in an operation of a part of the warp.
    const WarpOperation* partial = nullptr;
    uint32_t partial_lanes = 0;
    // cp.async: copies not yet visible, and where their groups end.
    std::vector<PendingCopy> copies;
    std::vector<size_t> groups;
};

struct Warp {
    Block* block = nullptr;
    int number = 0;
    uint32_t live_positions = 0, ready_positions = 0;
    uint32_t live_lanes = 0;
    const WarpOperation* meeting = nullptr;  // of all live lanes
    uint32_t met_positions = 0;
    uint32_t barrier_positions = 0;
    Lane* at[kLanes] = {};    // by position
    Lane* lane[kLanes] = {};  // by lane
    unsigned synced = 0;      // times __syncwarp was passed
    char sync_order[2];       // addresses for races.h
    // What lanes bring to an operation and take from it, by lane.
    alignas(64) uint32_t in[kLanes][16];
    alignas(64) uint32_t out[kLanes][4];
};

struct KernelCall {
    const void* function = nullptr;
    void (*invoke)(const void* function, const void* arguments) = nullptr;
    std::shared_ptr<const void> arguments;
    dim3 grid, block;
    size_t shared_bytes = 0;
};

// Returns when every block has finished; throws KernelError.
void run_grid(const KernelCall& call);

// --- for code that runs in a kernel --------------------------------------------------------------
extern thread_local Lane* current;

// Blocks until all of `lanes` are here; then operation.run has been called once.
void meet(const WarpOperation& operation, uint32_t lanes);
// Until all threads that live are here.
void block_barrier();
[[noreturn]] void fault(Fault fault, const std::string& what);

unsigned char* shared_begin();
size_t shared_bytes();

}  // namespace emulator

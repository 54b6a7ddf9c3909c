#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <utility>

#include "builtins.h"
#include "counters.h"
#include "races.h"
#include "symbol.h"

#if defined(EMULATOR_ASAN)
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {

AtomicCounters counted;

namespace {

constexpr size_t kStackBytes = 256 * 1024;  // reserved; a page of it is touched, as a rule
constexpr size_t kEdgeBytes = 128;
constexpr unsigned char kPoison = 0xff, kEdge = 0xa5;

void lane_main() {
    entered();
    for (;;) {
        Block& block = *current->warp->block;
        Lane* next = nullptr;  // none: the block has finished, or failed
        try {
            const KernelCall& call = *block.executor.call;
            races_acquire(&block.begin_order);
            call.invoke(call.function, call.arguments.get());
            races_release(&block.end_order);
            block.finish_lane(*current);
            if (block.live) next = block.next(*current);
        } catch (...) {
            block.executor.error = std::current_exception();
        }
        // Not in the catch: the exception must not stay on a stack that nobody unwinds.
        if (next)
            switch_to(next);
        else
            switch_fiber(current->fiber, block.executor.main);
    }
}

uint3 index_of(uint32_t number, dim3 grid) {
    return {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
}

}  // namespace

Block::Block(Executor& executor, int threads, size_t shared_bytes)
    : executor(executor), threads(threads), shared_bytes(shared_bytes) {
    const int warp_count = (threads + kLanes - 1) / kLanes;
    lanes.resize(size_t(threads));
    warps = std::vector<Warp>(size_t(warp_count));
    stacks_bytes_ = kStackBytes * size_t(threads);
    stacks_ = mmap(nullptr, stacks_bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks_ == MAP_FAILED) throw std::bad_alloc();
    for (int i = 0; i < threads; ++i) {
        Lane& lane = lanes[size_t(i)];
        lane.number = i;
        lane.lane = i % kLanes;
        lane.warp = &warps[size_t(i / kLanes)];
        lane.warp->lane[lane.lane] = &lane;
        lane.fiber.stack = static_cast<char*>(stacks_) + kStackBytes * size_t(i);
        lane.fiber.stack_bytes = kStackBytes;
        // A stack that grows into its neighbour must stop here. Few blocks have so many fibers
        // that the kernel runs out of mappings; those go without.
        mprotect(lane.fiber.stack, 4096, PROT_NONE);
        prepare(lane.fiber, lane_main, size_t(i % 97) * 704);
    }
    for (int i = 0; i < warp_count; ++i) {
        warps[size_t(i)].block = this;
        warps[size_t(i)].number = i;
        order.push_back(&warps[size_t(i)]);
    }
    shared_room_bytes_ = kEdgeBytes + (shared_bytes + 2 * kEdgeBytes) / kEdgeBytes * kEdgeBytes;
    shared_room_ = static_cast<unsigned char*>(std::aligned_alloc(kEdgeBytes, shared_room_bytes_));
    if (!shared_room_) throw std::bad_alloc();
    shared = shared_room_ + kEdgeBytes;
    std::memset(shared_room_, kEdge, shared_room_bytes_);
#if defined(EMULATOR_ASAN)
    ASAN_POISON_MEMORY_REGION(shared_room_, kEdgeBytes);
    ASAN_POISON_MEMORY_REGION(shared + shared_bytes,
                              shared_room_bytes_ - kEdgeBytes - shared_bytes);
#endif
}

Block::~Block() {
    for (Lane& lane : lanes) forget(lane.fiber);
#if defined(EMULATOR_ASAN)
    ASAN_UNPOISON_MEMORY_REGION(shared_room_, shared_room_bytes_);
    ASAN_UNPOISON_MEMORY_REGION(stacks_, stacks_bytes_);
#endif
    std::free(shared_room_);
    munmap(stacks_, stacks_bytes_);
}

void Block::begin(uint3 new_index, std::mt19937& random, bool shuffled) {
    index = new_index;
    live = threads;
    arrived = 0;
    const dim3 shape = executor.call->block;
    for (Warp& warp : warps) {
        const int count = std::min(kLanes, threads - warp.number * kLanes);
        int position[kLanes];
        std::iota(position, position + count, 0);
        if (shuffled) std::shuffle(position, position + count, random);
        warp.live_positions = warp.live_lanes = count == kLanes ? kAll : (1u << count) - 1;
        warp.ready_positions = warp.live_positions;
        warp.met_positions = warp.barrier_positions = 0;
        warp.meeting = nullptr;
        for (int l = 0; l < count; ++l) {
            Lane& lane = *warp.lane[l];
            const unsigned n = unsigned(lane.number);
            lane.thread = {n % shape.x, n / shape.x % shape.y, n / shape.x / shape.y};
            lane.position_bit = 1u << position[l];
            lane.finished = false;
            lane.partial = nullptr;
            warp.at[position[l]] = &lane;
        }
    }
    if (shuffled) std::shuffle(order.begin(), order.end(), random);
    std::memset(shared, kPoison, shared_bytes);
    races_release(&begin_order);
}

void Block::check_shared_edges() const {
#if !defined(EMULATOR_ASAN)
    const size_t after = shared_room_bytes_ - kEdgeBytes - shared_bytes;
    for (size_t i = 0; i < kEdgeBytes + after; ++i) {
        const unsigned char* edge =
            i < kEdgeBytes ? shared_room_ + i : shared + shared_bytes + (i - kEdgeBytes);
        if (*edge == kEdge) continue;
        throw KernelError(Fault::out_of_bounds, symbol_name(executor.call->function), index, -1,
                          "shared memory was written at byte " + std::to_string(edge - shared) +
                              " of " + std::to_string(shared_bytes));
    }
#endif
}

// --- executor ------------------------------------------------------------------------------------

void Executor::abandon() {
    block_.reset();
    current = nullptr;
}

void Executor::run(const KernelCall& work) {
    call = &work;
    main = Fiber{};
    blockDim = work.block;
    gridDim = work.grid;
    shuffled = options().seed != 0;
    random.seed(options().seed);
    std::vector<uint32_t> order(work.grid.x * work.grid.y * work.grid.z);
    std::iota(order.begin(), order.end(), 0u);
    if (shuffled) std::shuffle(order.begin(), order.end(), random);
    // A block serves every launch of its shape.
    const int threads = int(work.block.x * work.block.y * work.block.z);
    if (!block_ || block_->threads != threads || block_->shared_bytes != work.shared_bytes) {
        block_.reset();
        block_ = std::make_unique<Block>(*this, threads, work.shared_bytes);
    }
    Block& block = *block_;
    for (const uint32_t number : order) {
        block.begin(index_of(number, work.grid), random, shuffled);
        current = block.pick(block.order.front(), shuffled ? 1u << (random() & 31) : 1u << 31);
        blockIdx = block.index;
        threadIdx = current->thread;
        switch_fiber(main, current->fiber);
        if (error) std::rethrow_exception(std::exchange(error, nullptr));
        races_acquire(&block.end_order);
        block.check_shared_edges();
    }
    current = nullptr;
}

void run_grid(const KernelCall& call) {
    // Stacks are worth keeping from launch to launch, by the thread that made them alone: a fiber
    // may hold the address of a thread_local in a register.
    thread_local Executor executor;
    ++counted.kernels;
    try {
        executor.run(call);
    } catch (...) {
        executor.abandon();
        throw;
    }
}

}  // namespace emulator

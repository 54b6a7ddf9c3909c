#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>
#include <utility>

#include "builtins.h"
#include "counters.h"
#include "occupancy.h"
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
        bool failed = false;  // the exception itself must not stay on a stack that nobody unwinds
        Block& block = *current->warp->block;
        try {
            const KernelCall& call = *block.executor.grid->call;
            races_acquire(&block.begin_order);
            call.invoke(call.function, call.arguments.get());
            races_release(&block.end_order);
            block.finish_lane(*current);
            if (block.live && !block.has_ready()) block.explain_stuck();
        } catch (...) {
            block.executor.error = std::current_exception();
            failed = true;
        }
        if (failed) block.executor.leave_block();  // for good
        block.executor.next_or_leave(block);
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
    std::fill(std::begin(barrier_arrived), std::end(barrier_arrived), 0);
    const dim3 shape = executor.grid->call->block;
    for (Warp& warp : warps) {
        const int count = std::min(kLanes, threads - warp.number * kLanes);
        int position[kLanes];
        std::iota(position, position + count, 0);
        if (shuffled) std::shuffle(position, position + count, random);
        warp.live_positions = warp.live_lanes = count == kLanes ? kAll : (1u << count) - 1;
        warp.existing_lanes = warp.live_lanes;
        warp.ready_positions = warp.live_positions;
        warp.spun_positions = warp.met_positions = 0;
        warp.meeting = nullptr;
        std::fill(std::begin(warp.barrier_positions), std::end(warp.barrier_positions), 0u);
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
        throw KernelError(Fault::out_of_bounds, symbol_name(executor.grid->call->function), index,
                          -1,
                          "shared memory was written at byte " + std::to_string(edge - shared) +
                              " of " + std::to_string(shared_bytes));
    }
#endif
}

// --- executor ------------------------------------------------------------------------------------

Executor::~Executor() = default;

void Executor::next_or_leave(Block& block) {
    Lane* me = current;
    if (Lane* next = block.pick(me->warp, me->position_bit)) {
        current = next;
        threadIdx = next->thread;
        switch_fiber(me->fiber, next->fiber);
    } else {
        leave_block();
    }
}

void Executor::leave_block() { switch_fiber(current->fiber, main); }

void Executor::abandon() {
    resident_.clear();
    idle_.clear();
    operations = 0;
    current = nullptr;
}

void Executor::run(const Grid& work, uint32_t (*take)(void*), void* state, int most_resident) {
    grid = &work;
    main = Fiber{};
    blockDim = work.call->block;
    gridDim = work.call->grid;
    const int threads = int(work.call->block.x * work.call->block.y * work.call->block.z);
    // Kept blocks serve a launch of the same shape.
    while (!idle_.empty() && (idle_.back()->threads != threads ||
                              idle_.back()->shared_bytes != work.call->shared_bytes))
        idle_.pop_back();
    long turns_in_vain = 0;
    size_t turn = 0;
    bool more = true;
    for (;;) {
        const bool may_start = more && int(resident_.size()) < most_resident;
        if (may_start && (resident_.empty() || turns_in_vain > 0)) {
            const uint32_t number = take(state);
            if (number == UINT32_MAX) {
                more = false;
            } else {
                if (idle_.empty())
                    idle_.push_back(
                        std::make_unique<Block>(*this, threads, work.call->shared_bytes));
                resident_.push_back(std::move(idle_.back()));
                idle_.pop_back();
                turn = resident_.size() - 1;
                resident_.back()->begin(index_of(number, work.call->grid), random, shuffled);
            }
        }
        if (resident_.empty()) break;
        turn %= resident_.size();
        Block& block = *resident_[turn];
        for (Warp& warp : block.warps) warp.spun_positions = 0;
        current = block.pick(block.order.front(), shuffled ? 1u << (random() & 31) : 1u << 31);
        blockIdx = block.index;
        threadIdx = current->thread;
        switch_fiber(main, current->fiber);
        if (error) std::rethrow_exception(std::exchange(error, nullptr));
        if (block.live == 0) {
            races_acquire(&block.end_order);
            block.check_shared_edges();
            ++counted.blocks;
            idle_.push_back(std::move(resident_[turn]));
            resident_.erase(resident_.begin() + ptrdiff_t(turn));
            turns_in_vain = 0;
        } else if (++turns_in_vain > options().spin_limit * long(resident_.size())) {
            throw KernelError(Fault::deadlock, symbol_name(work.call->function), block.index, -1,
                              "resident blocks spin and nothing else moves");
        } else {
            turn = shuffled ? random() % resident_.size() : turn + 1;
            if (options().os_threads > 1) std::this_thread::yield();
        }
    }
    counted.warp_operations += std::exchange(operations, 0);
    current = nullptr;
}

namespace {

struct Dealer {
    const Grid* grid;
    std::atomic<uint32_t> next{0};
};

uint32_t deal(void* state) {
    Dealer& dealer = *static_cast<Dealer*>(state);
    const uint32_t i = dealer.next++;
    if (i >= dealer.grid->blocks) return UINT32_MAX;
    return dealer.grid->order.empty() ? i : dealer.grid->order[i];
}

void run_share(const Grid& grid, Dealer& dealer, int share, int most_resident,
               std::exception_ptr& error) {
    // Stacks are worth keeping from launch to launch, by the thread that made them alone: a fiber
    // may hold the address of a thread_local in a register.
    thread_local Executor executor;
    executor.shuffled = options().seed != 0;
    executor.random.seed(options().seed * 31 + uint32_t(share));
    try {
        executor.run(grid, deal, &dealer, most_resident);
    } catch (...) {
        error = std::current_exception();
        dealer.next = grid.blocks;
        executor.abandon();
    }
}

}  // namespace

void run_grid(const KernelCall& call) {
    ++counted.kernels;
    Grid grid{&call, {}, call.grid.x * call.grid.y * call.grid.z};
    if (options().seed) {
        grid.order.resize(grid.blocks);
        std::iota(grid.order.begin(), grid.order.end(), 0u);
        std::mt19937 random(options().seed);
        std::shuffle(grid.order.begin(), grid.order.end(), random);
    }
    const int threads = int(call.block.x * call.block.y * call.block.z);
    const int resident = std::max(1, blocks_per_multiprocessor(threads, call.shared_bytes)) *
                         device_model().multiprocessors;
    Dealer dealer{&grid, {0}};
    const int shares = std::max(1, std::min<int>(options().os_threads, int(grid.blocks)));
    std::vector<std::exception_ptr> errors{size_t(shares)};
    std::vector<std::thread> others;
    for (int i = 1; i < shares; ++i)
        others.emplace_back([&, i] { run_share(grid, dealer, i, resident, errors[size_t(i)]); });
    run_share(grid, dealer, 0, resident, errors[0]);
    for (std::thread& other : others) other.join();
    for (const std::exception_ptr& error : errors)
        if (error) std::rethrow_exception(error);
}

}  // namespace emulator

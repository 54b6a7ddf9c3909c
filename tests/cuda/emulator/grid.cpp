#include "grid.h"

#include <cstdio>

#include "block.h"
#include "builtins.h"
#include "races.h"
#include "symbol.h"

namespace emulator {

thread_local Lane* current = nullptr;

void switch_to(Lane* to) {
    Lane* from = current;
    if (to == from) return;
    current = to;
    threadIdx = to->thread;
    switch_fiber(from->fiber, to->fiber);
}

namespace {

// The current lane cannot go on: some other lane of its block.
void suspend() { switch_to(current->warp->block->next(*current)); }

uint32_t positions_of(const Warp& warp, uint32_t lanes) {
    uint32_t positions = 0;
    for (uint32_t left = lanes; left; left &= left - 1)
        positions |= warp.lane[__builtin_ctz(left)]->position_bit;
    return positions;
}

void check_all_lanes(const WarpOperation& operation, const Warp& warp, uint32_t lanes) {
    if (!operation.all_lanes || (lanes & warp.live_lanes) == kAll) return;
    char text[160];
    std::snprintf(text, sizeof text,
                  "warp %d: %s needs all 32 lanes; asked for 0x%08x, alive are 0x%08x", warp.number,
                  operation.name, lanes, warp.live_lanes);
    fault(Fault::divergence, text);
}

void start_meeting(const WarpOperation& operation, Warp& warp) {
    check_all_lanes(operation, warp, kAll);
    if (warp.meeting)
        fault(Fault::divergence, "warp " + std::to_string(warp.number) + ": a lane is at " +
                                     operation.name + " while others wait at " +
                                     warp.meeting->name);
    warp.meeting = &operation;
}

void complete_meeting(Warp& warp) {
    const WarpOperation& operation = *warp.meeting;
    warp.meeting = nullptr;
    warp.ready_positions |= warp.met_positions;
    warp.met_positions = 0;
    operation.run(warp, warp.live_lanes);
}

void meet_some(const WarpOperation& operation, uint32_t lanes) {
    Lane* me = current;
    Warp& warp = *me->warp;
    check_all_lanes(operation, warp, lanes);
    if (!(lanes >> me->lane & 1)) fault(Fault::divergence, "a lane outside of its own mask");
    me->partial = &operation;
    me->partial_lanes = lanes;
    const uint32_t wanted = lanes & warp.live_lanes;
    for (uint32_t left = wanted; left; left &= left - 1) {
        const Lane& other = *warp.lane[__builtin_ctz(left)];
        if (other.partial != &operation || other.partial_lanes != lanes) {
            warp.ready_positions &= ~me->position_bit;
            suspend();
            return;
        }
    }
    operation.run(warp, wanted);
    for (uint32_t left = wanted; left; left &= left - 1)
        warp.lane[__builtin_ctz(left)]->partial = nullptr;
    warp.ready_positions |= positions_of(warp, wanted);
}

}  // namespace

void meet(const WarpOperation& operation, uint32_t lanes) {
    Lane* me = current;
    Warp& warp = *me->warp;
    if (lanes != kAll) return meet_some(operation, lanes);
    if (warp.meeting != &operation) start_meeting(operation, warp);
    warp.met_positions |= me->position_bit;
    if (warp.met_positions != warp.live_positions) {
        warp.ready_positions &= ~me->position_bit;
        if (!warp.ready_positions) return suspend();
        switch_to(warp.at[__builtin_ctz(warp.ready_positions)]);
        return;
    }
    complete_meeting(warp);
    // Another warp's turn, now and then: barriers must hold whatever the order.
    Executor& executor = warp.block->executor;
    if (executor.shuffled && (executor.random() & 7) == 0) {
        Warp* other = warp.block->order[executor.random() % warp.block->order.size()];
        const uint32_t ready = other->ready_positions;
        if (other != &warp && ready) switch_to(other->at[__builtin_ctz(ready)]);
    }
}

void block_barrier() {
    Lane* me = current;
    Warp& warp = *me->warp;
    Block& block = *warp.block;
    if (warp.met_positions != 0)
        fault(Fault::divergence, "warp " + std::to_string(warp.number) +
                                     ": a lane is at __syncthreads while others wait at " +
                                     warp.meeting->name);
    // Two in turn: who runs ahead to the next barrier has not met who still leaves this one.
    char* order = &block.barrier_order[block.barriers_passed & 1];
    races_release(order);
    warp.barrier_positions |= me->position_bit;
    warp.ready_positions &= ~me->position_bit;
    if (++block.arrived == block.live) block.release_barrier();
    // Even the last to arrive lets others go first when the order is shuffled.
    if (!(warp.ready_positions & me->position_bit) || block.executor.shuffled) suspend();
    races_acquire(order);
}

void fault(Fault fault, const std::string& what) {
    if (!current) throw KernelError(fault, "", {}, -1, what);
    const Block& block = *current->warp->block;
    throw KernelError(fault, symbol_name(block.executor.call->function), block.index,
                      current->number, what);
}

unsigned char* shared_begin() { return current->warp->block->shared; }
size_t shared_bytes() { return current->warp->block->shared_bytes; }

// --- lanes of one block --------------------------------------------------------------------------

Lane* Block::pick(Warp* from, uint32_t after_position) {
    if (uint32_t ready = from->ready_positions) {
        const uint32_t later = ready & ~(after_position | (after_position - 1));
        return from->at[__builtin_ctz(later ? later : ready)];
    }
    const size_t count = order.size();
    const size_t first = executor.shuffled ? executor.random() % count : size_t(from->number) + 1;
    for (size_t i = 0; i < count; ++i) {
        Warp* warp = order[(first + i) % count];
        if (uint32_t ready = warp->ready_positions) return warp->at[__builtin_ctz(ready)];
    }
    return nullptr;
}

Lane* Block::next(const Lane& stopped) {
    Lane* lane = pick(stopped.warp, stopped.position_bit);
    if (!lane) explain_stuck();
    return lane;
}

void Block::release_barrier() {
    arrived = 0;
    ++barriers_passed;
    for (Warp& warp : warps) {
        warp.ready_positions |= warp.barrier_positions;
        warp.barrier_positions = 0;
    }
}

void Block::finish_lane(Lane& lane) {
    Warp& warp = *lane.warp;
    lane.finished = true;
    lane.copies.clear();
    lane.groups.clear();
    warp.live_positions &= ~lane.position_bit;
    warp.ready_positions &= ~lane.position_bit;
    warp.live_lanes &= ~(1u << lane.lane);
    --live;
    // Whoever waits for everybody waits for one fewer.
    if (warp.meeting) {
        check_all_lanes(*warp.meeting, warp, kAll);
        if (warp.met_positions == warp.live_positions) complete_meeting(warp);
    }
    if (arrived && arrived == live) release_barrier();
}

// No lane can run and some have not finished: says who waits where. One of them waits for others of
// its warp: if all were at the barrier, it would open.
void Block::explain_stuck() const {
    std::string waiting;
    int listed = 0;
    for (const Warp& warp : warps) {
        for (int l = 0; l < kLanes; ++l) {
            const Lane* lane = warp.lane[l];
            if (!lane || lane->finished) continue;
            const char* where = "__syncthreads";
            if (warp.met_positions & lane->position_bit) where = warp.meeting->name;
            if (lane->partial) where = lane->partial->name;
            if (listed++ < 6)
                waiting += (listed > 1 ? "; " : "") + std::string("warp ") +
                           std::to_string(warp.number) + " lane " + std::to_string(l) + " at " +
                           where;
        }
    }
    fault(Fault::divergence, "no thread can run, " + std::to_string(listed) + " wait: " + waiting);
}

}  // namespace emulator

#include "warp.h"

#include <cstdio>
#include <string>

#include "grid.h"
#include "races.h"

#if defined(EMULATOR_ASAN)
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {

namespace {

constexpr uint32_t kNobody = 0x7fffbadau;  // what a lane that does not take part has to say: NaN

template <class Fn>
void each(uint32_t lanes, Fn fn) {
    for (; lanes; lanes &= lanes - 1) fn(__builtin_ctz(lanes));
}

void run_shuffle(Warp& warp, uint32_t lanes) {
    each(lanes, [&](int l) {
        const uint32_t from = warp.in[l][1];
        warp.out[l][0] = lanes >> from & 1 ? warp.in[from][0] : kNobody;
    });
}
const WarpOperation kShuffles[] = {{"__shfl_sync", false, run_shuffle},
                                   {"__shfl_up_sync", false, run_shuffle},
                                   {"__shfl_down_sync", false, run_shuffle},
                                   {"__shfl_xor_sync", false, run_shuffle}};

const WarpOperation kBallot = {"__ballot_sync", false, [](Warp& warp, uint32_t lanes) {
                                   uint32_t votes = 0;
                                   each(lanes, [&](int l) { votes |= warp.in[l][0] << l; });
                                   each(lanes, [&](int l) { warp.out[l][0] = votes; });
                               }};
const WarpOperation kReduceAdd = {"__reduce_add_sync", false, [](Warp& warp, uint32_t lanes) {
                                      uint32_t sum = 0;
                                      each(lanes, [&](int l) { sum += warp.in[l][0]; });
                                      each(lanes, [&](int l) { warp.out[l][0] = sum; });
                                  }};
const WarpOperation kSyncWarp = {"__syncwarp", false, [](Warp& warp, uint32_t) { ++warp.synced; }};

// Each lane has read its own row: 16 bytes, in[lane][0..3].
template <int COUNT, bool TRANSPOSED>
void run_ldmatrix(Warp& warp, uint32_t) {
    for (int m = 0; m < COUNT; ++m) {
        uint16_t matrix[8][8];
        for (int row = 0; row < 8; ++row) std::memcpy(matrix[row], warp.in[8 * m + row], 16);
        for (int l = 0; l < kLanes; ++l) {
            const int g = l / 4, t = l % 4 * 2;
            const uint16_t low = TRANSPOSED ? matrix[t][g] : matrix[g][t];
            const uint16_t high = TRANSPOSED ? matrix[t + 1][g] : matrix[g][t + 1];
            warp.out[l][m] = uint32_t(high) << 16 | low;
        }
    }
}
const WarpOperation kLdmatrix[2][3] = {{{"ldmatrix.x1", true, run_ldmatrix<1, false>},
                                        {"ldmatrix.x2", true, run_ldmatrix<2, false>},
                                        {"ldmatrix.x4", true, run_ldmatrix<4, false>}},
                                       {{"ldmatrix.x1.trans", true, run_ldmatrix<1, true>},
                                        {"ldmatrix.x2.trans", true, run_ldmatrix<2, true>},
                                        {"ldmatrix.x4.trans", true, run_ldmatrix<4, true>}}};

[[noreturn]] void wrong_shared(Fault kind, const char* operation, uint32_t address, int bytes) {
    char text[160];
    std::snprintf(text, sizeof text, "%s: shared byte %d of %zu, %d bytes%s", operation,
                  int(address) - int(kSharedBase), shared_bytes(), bytes,
                  kind == Fault::misaligned ? ": not aligned" : "");
    fault(kind, text);
}

unsigned char* shared_at(uint32_t address, int bytes, const char* operation) {
    if (address & uint32_t(bytes - 1)) wrong_shared(Fault::misaligned, operation, address, bytes);
    const uint32_t offset = address - kSharedBase;
    if (address < kSharedBase || offset + uint32_t(bytes) > shared_bytes())
        wrong_shared(Fault::out_of_bounds, operation, address, bytes);
    return shared_begin() + offset;
}

void check_readable([[maybe_unused]] const void* from, [[maybe_unused]] int bytes,
                    [[maybe_unused]] const char* operation) {
#if defined(EMULATOR_ASAN)
    if (bytes && __asan_region_is_poisoned(const_cast<void*>(from), size_t(bytes)))
        fault(Fault::out_of_bounds, std::string(operation) + ": the source is no memory of ours");
#endif
#if defined(EMULATOR_TSAN)
    __tsan_read_range(const_cast<void*>(from), size_t(bytes));
#endif
}

void note_write([[maybe_unused]] void* to, [[maybe_unused]] int bytes) {
#if defined(EMULATOR_TSAN)
    __tsan_write_range(to, size_t(bytes));
#endif
}

}  // namespace

uint32_t shuffle(Shuffle kind, uint32_t lanes, uint32_t value, int operand, int width) {
    Lane& me = *current;
    const int lane = me.lane, first = lane & ~(width - 1), last = first + width - 1;
    int from = lane;
    switch (kind) {
        case Shuffle::index: from = first + (operand & (width - 1)); break;
        case Shuffle::up: from = lane - operand < first ? lane : lane - operand; break;
        case Shuffle::down: from = lane + operand > last ? lane : lane + operand; break;
        case Shuffle::butterfly: from = (lane ^ operand) > last ? lane : lane ^ operand; break;
    }
    me.warp->in[lane][0] = value;
    me.warp->in[lane][1] = uint32_t(from) % kLanes;
    meet(kShuffles[int(kind)], lanes);
    return me.warp->out[lane][0];
}

uint32_t ballot(uint32_t lanes, bool predicate) {
    Lane& me = *current;
    me.warp->in[me.lane][0] = predicate;
    meet(kBallot, lanes);
    return me.warp->out[me.lane][0];
}

uint32_t reduce_add(uint32_t lanes, uint32_t value) {
    Lane& me = *current;
    me.warp->in[me.lane][0] = value;
    meet(kReduceAdd, lanes);
    return me.warp->out[me.lane][0];
}

void sync_warp(uint32_t lanes) {
    Warp& warp = *current->warp;
    // Two in turn, as at barriers. Parts of a warp pass at their own times: they meet at both.
    char* order = &warp.sync_order[warp.synced & 1];
    char* other = lanes == kAll ? order : &warp.sync_order[~warp.synced & 1];
    races_release(order);
    races_release(other);
    meet(kSyncWarp, lanes);
    races_acquire(order);
    races_acquire(other);
}

void sync_block(int barrier, int threads) { block_barrier(barrier, threads); }

void ldmatrix(uint32_t* out, int count, bool transposed, uint32_t address) {
    Lane& me = *current;
    const WarpOperation& operation = kLdmatrix[transposed][count / 2];
    if (me.lane < 8 * count) {  // the other lanes' addresses are not looked at
        unsigned char* row = shared_at(address, 16, operation.name);
#if defined(EMULATOR_TSAN)
        __tsan_read_range(row, 16);
#endif
        std::memcpy(me.warp->in[me.lane], row, 16);
    }
    meet(operation, kAll);
    std::memcpy(out, me.warp->out[me.lane], size_t(count) * 4);
}

uint32_t shared_address(const void* pointer) {
    const ptrdiff_t offset = static_cast<const unsigned char*>(pointer) - shared_begin();
    // One past the end may be named; nothing may be read there.
    if (size_t(offset) > shared_bytes())
        fault(Fault::out_of_bounds, "shared_address: byte " + std::to_string(offset) + " of " +
                                        std::to_string(shared_bytes()) +
                                        " is not in shared memory");
    return kSharedBase + uint32_t(offset);
}

// A copy may land at any time from here to its wait: until then the destination holds poison, so
// that neither an early reader nor a late one of the previous contents goes unseen.
void copy_async(uint32_t to, const void* from, int bytes, int source_bytes) {
    PendingCopy copy;
    copy.to = shared_at(to, bytes, "cp.async");
    copy.bytes = bytes;
    if (source_bytes < 0 || source_bytes > bytes)
        fault(Fault::out_of_bounds, "cp.async: " + std::to_string(source_bytes) +
                                        " source bytes of " + std::to_string(bytes));
    if (reinterpret_cast<uintptr_t>(from) % uintptr_t(bytes))
        fault(Fault::misaligned,
              "cp.async: the global address is not a multiple of " + std::to_string(bytes));
    check_readable(from, source_bytes, "cp.async");
    std::memset(copy.data, 0, sizeof copy.data);
    if (source_bytes) std::memcpy(copy.data, from, size_t(source_bytes));
    note_write(copy.to, bytes);
    std::memset(copy.to, 0xff, size_t(bytes));
    current->copies.push_back(copy);
}

void commit_copies() { current->groups.push_back(current->copies.size()); }

namespace {

void land(Lane& lane, size_t count) {
    for (size_t i = 0; i < count; ++i) {
        const PendingCopy& copy = lane.copies[i];
        note_write(copy.to, copy.bytes);
        std::memcpy(copy.to, copy.data, size_t(copy.bytes));
    }
    lane.copies.erase(lane.copies.begin(), lane.copies.begin() + ptrdiff_t(count));
}

}  // namespace

void wait_copies(int groups_left) {
    Lane& lane = *current;
    if (lane.groups.size() <= size_t(groups_left)) return;
    const size_t done = lane.groups.size() - size_t(groups_left);
    const size_t count = lane.groups[done - 1];
    land(lane, count);
    lane.groups.erase(lane.groups.begin(), lane.groups.begin() + ptrdiff_t(done));
    for (size_t& end : lane.groups) end -= count;
}

void wait_all_copies() {
    Lane& lane = *current;
    land(lane, lane.copies.size());
    lane.groups.clear();
}

}  // namespace emulator

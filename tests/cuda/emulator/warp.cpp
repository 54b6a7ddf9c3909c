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

void run_shuffle_xor(Warp& warp, uint32_t lanes) {
    each(lanes, [&](int l) {
        const uint32_t from = warp.in[l][1];
        warp.out[l][0] = lanes >> from & 1 ? warp.in[from][0] : kNobody;
    });
}
const WarpOperation kShuffleXor = {"__shfl_xor_sync", false, run_shuffle_xor};

const WarpOperation kBallot = {"__ballot_sync", false, [](Warp& warp, uint32_t lanes) {
                                   uint32_t votes = 0;
                                   each(lanes, [&](int l) { votes |= warp.in[l][0] << l; });
                                   each(lanes, [&](int l) { warp.out[l][0] = votes; });
                               }};
const WarpOperation kSyncWarp = {"__syncwarp", false, [](Warp& warp, uint32_t) { ++warp.synced; }};

// Each lane has read its own row: 16 bytes, in[lane][0..3].
template <bool TRANSPOSED>
void run_ldmatrix(Warp& warp, uint32_t) {
    for (int m = 0; m < 4; ++m) {
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
const WarpOperation kLdmatrix = {"ldmatrix.x4", true, run_ldmatrix<false>};
const WarpOperation kLdmatrixTrans = {"ldmatrix.x4.trans", true, run_ldmatrix<true>};

[[noreturn]] void wrong_shared(Fault kind, const char* operation, uint32_t address) {
    char text[160];
    std::snprintf(text, sizeof text, "%s: shared byte %d of %zu, %d bytes%s", operation,
                  int(address) - int(kSharedBase), shared_bytes(), kPieceBytes,
                  kind == Fault::misaligned ? ": not aligned" : "");
    fault(kind, text);
}

// The 16 bytes of ldmatrix and cp.async.
unsigned char* shared_at(uint32_t address, const char* operation) {
    if (address % kPieceBytes) wrong_shared(Fault::misaligned, operation, address);
    const uint32_t offset = address - kSharedBase;
    if (address < kSharedBase || offset + kPieceBytes > shared_bytes())
        wrong_shared(Fault::out_of_bounds, operation, address);
    return shared_begin() + offset;
}

void check_readable([[maybe_unused]] const void* from, [[maybe_unused]] int bytes) {
#if defined(EMULATOR_ASAN)
    if (bytes && __asan_region_is_poisoned(const_cast<void*>(from), size_t(bytes)))
        fault(Fault::out_of_bounds, "cp.async: the source is no memory of ours");
#endif
#if defined(EMULATOR_TSAN)
    __tsan_read_range(const_cast<void*>(from), size_t(bytes));
#endif
}

void note_write([[maybe_unused]] void* to) {
#if defined(EMULATOR_TSAN)
    __tsan_write_range(to, kPieceBytes);
#endif
}

}  // namespace

uint32_t shuffle_xor(uint32_t lanes, uint32_t value, int mask) {
    Lane& me = *current;
    me.warp->in[me.lane][0] = value;
    me.warp->in[me.lane][1] = uint32_t(me.lane ^ mask) % kLanes;
    meet(kShuffleXor, lanes);
    return me.warp->out[me.lane][0];
}

uint32_t ballot(uint32_t lanes, bool predicate) {
    Lane& me = *current;
    me.warp->in[me.lane][0] = predicate;
    meet(kBallot, lanes);
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

void sync_block() { block_barrier(); }

void ldmatrix(uint32_t (&out)[4], bool transposed, uint32_t address) {
    Lane& me = *current;
    const WarpOperation& operation = transposed ? kLdmatrixTrans : kLdmatrix;
    unsigned char* row = shared_at(address, operation.name);
#if defined(EMULATOR_TSAN)
    __tsan_read_range(row, kPieceBytes);
#endif
    std::memcpy(me.warp->in[me.lane], row, kPieceBytes);
    meet(operation, kAll);
    std::memcpy(out, me.warp->out[me.lane], sizeof out);
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
void copy_async(uint32_t to, const void* from, int source_bytes) {
    PendingCopy copy;
    copy.to = shared_at(to, "cp.async");
    if (source_bytes < 0 || source_bytes > kPieceBytes)
        fault(Fault::out_of_bounds, "cp.async: " + std::to_string(source_bytes) +
                                        " source bytes of " + std::to_string(kPieceBytes));
    if (reinterpret_cast<uintptr_t>(from) % kPieceBytes)
        fault(Fault::misaligned,
              "cp.async: the global address is not a multiple of " + std::to_string(kPieceBytes));
    check_readable(from, source_bytes);
    std::memset(copy.data, 0, kPieceBytes);
    if (source_bytes) std::memcpy(copy.data, from, size_t(source_bytes));
    note_write(copy.to);
    std::memset(copy.to, 0xff, kPieceBytes);
    current->copies.push_back(copy);
}

void commit_copies() { current->groups.push_back(current->copies.size()); }

namespace {

void land(Lane& lane, size_t count) {
    for (size_t i = 0; i < count; ++i) {
        const PendingCopy& copy = lane.copies[i];
        note_write(copy.to);
        std::memcpy(copy.to, copy.data, kPieceBytes);
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

// cp.async: what a kernel that waits gets, and that one which does not wait, or waits for too few
// groups, or forgets the barrier after the wait, gets something else.
#include <algorithm>

#include "cuda/ptx.h"
#include "device_array.h"

using namespace smolvla::cuda;

namespace {

// Every thread copies one piece, reads it back at once and after the wait.
__global__ void copy_pieces(const unsigned char* from, unsigned char* early, unsigned char* late,
                            int source_bytes) {
    unsigned char* shared = shared_memory<unsigned char>();
    const int at = 16 * int(threadIdx.x);
    for (int i = 0; i < 16; ++i) shared[at + i] = 77;
    copy_16(shared_address(shared + at), source_bytes ? from + at : nullptr, source_bytes);
    copy_commit();
    for (int i = 0; i < 16; ++i) early[at + i] = shared[at + i];
    copy_wait<0>();
    for (int i = 0; i < 16; ++i) late[at + i] = shared[at + i];
}

void test_pieces() {
    constexpr int kThreads = 37;
    std::vector<unsigned char> from(16 * kThreads);
    for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<unsigned char>(i % 201);
    DeviceArray<unsigned char> device_from(from), early(from.size()), late(from.size());
    for (int source_bytes = 0; source_bytes <= 16; ++source_bytes) {
        CHECK(!launch(copy_pieces, Launch{1, kThreads, 16 * kThreads}, device_from.data(),
                      early.data(), late.data(), source_bytes));
        std::vector<unsigned char> expected = from;
        for (size_t i = 0; i < expected.size(); ++i)
            if (int(i % 16) >= source_bytes) expected[i] = 0;
        CHECK(late.read() == expected);
        CHECK(early.read() == std::vector<unsigned char>(from.size(), 0xff));
    }
}

// A ring of STAGES tiles; a thread sums what another warp copied.
enum class Ring { right, waits_for_too_few, no_barrier, fills_before_barrier };

template <int STAGES, Ring KIND>
__global__ void ring(const int* from, int* sums, int tiles) {
    int* shared = shared_memory<int>();
    const int threads = int(blockDim.x), mine = int(threadIdx.x);
    const auto fill = [&](int tile) {
        if (tile < tiles)
            copy_16(shared_address(shared + 4 * (threads * (tile % STAGES) + mine)),
                    from + 4 * (threads * tile + mine));
        copy_commit();
    };
    for (int tile = 0; tile < STAGES - 1; ++tile) fill(tile);
    int sum = 0;
    const int other = (mine + 32) % threads;
    for (int tile = 0; tile < tiles; ++tile) {
        copy_wait<KIND == Ring::waits_for_too_few ? STAGES - 1 : STAGES - 2>();
        // The stage to fill is the one that was read last: everybody must have finished with it.
        if (KIND == Ring::fills_before_barrier) fill(tile + STAGES - 1);
        if (KIND != Ring::no_barrier) __syncthreads();
        if (KIND != Ring::fills_before_barrier) fill(tile + STAGES - 1);
        for (int i = 0; i < 4; ++i)
            sum = int(unsigned(sum) * 31u) + shared[4 * (threads * (tile % STAGES) + other) + i];
    }
    sums[mine] = sum;
}

template <class Kernel>
bool ring_is_right(Kernel kernel, int stages) {
    constexpr int kThreads = 128, kTiles = 9;
    std::vector<int> from(4 * kThreads * kTiles);
    for (size_t i = 0; i < from.size(); ++i) from[i] = int(i * 7919 % 10007);
    std::vector<int> expected(kThreads);
    for (int thread = 0; thread < kThreads; ++thread) {
        int sum = 0;
        for (int tile = 0; tile < kTiles; ++tile)
            for (int i = 0; i < 4; ++i)
                sum = int(unsigned(sum) * 31u) +
                      from[size_t(4 * (kThreads * tile + (thread + 32) % kThreads) + i)];
        expected[size_t(thread)] = sum;
    }
    bool right = true;
    in_every_order([&] {
        DeviceArray<int> device_from(from), sums(kThreads);
        CHECK(!launch(kernel, Launch{1, kThreads, size_t(stages) * kThreads * 16},
                      device_from.data(), sums.data(), kTiles));
        right = right && sums.read() == expected;
    });
    return right;
}

__global__ void leave_open(const int* from, int* out) {
    int* shared = shared_memory<int>();
    copy_16(shared_address(shared), from);
    copy_commit();
    copy_16(shared_address(shared + 4), from + 4);  // never committed
    copy_wait<0>();
    out[0] = shared[0], out[1] = shared[4];
    copy_wait_all();
    out[2] = shared[4];
    copy_16(shared_address(shared + 8), from);
    copy_commit();
    copy_commit();  // an empty group counts
    copy_wait<1>();
    out[3] = shared[8];
}

void test_groups() {
    DeviceArray<int> from(std::vector<int>{5, 6, 7, 8, 9, 10, 11, 12}), out(4);
    CHECK(!launch(leave_open, Launch{1, 1, 48}, from.data(), out.data()));
    CHECK((out.read() == std::vector<int>{5, -1, 9, 5}));
}

__global__ void copy_from(const char* from, int to, int offset, int source_bytes) {
    copy_16(shared_address(shared_memory<char>()) + unsigned(to), from + offset, source_bytes);
}

void test_addresses() {
    DeviceArray<char> from(64);
    const auto fault = [&](int to, int offset, int source_bytes) {
        return fault_of(
            [&] { launch(copy_from, Launch{1, 1, 64}, from.data(), to, offset, source_bytes); });
    };
    CHECK(fault(48, 48, 16).empty());
    CHECK(contains(fault(8, 0, 16), "misaligned"));
    CHECK(contains(fault(0, 8, 16), "misaligned"));
    CHECK(contains(fault(64, 0, 16), "out of bounds"));
    CHECK(contains(fault(-16, 0, 16), "out of bounds"));
    CHECK(contains(fault(0, 0, 17), "out of bounds"));
    CHECK(contains(fault(64, 0, 16), "copy_from"));
#if defined(__SANITIZE_ADDRESS__)
    CHECK(contains(fault(0, 64, 16), "no memory of ours"));
    CHECK(contains(fault(0, 64, 1), "no memory of ours"));
    CHECK(fault(0, 64, 0).empty());
#endif
}

}  // namespace

int main() {
    test_pieces();
    CHECK(ring_is_right(ring<4, Ring::right>, 4));
    CHECK(ring_is_right(ring<3, Ring::right>, 3));
    CHECK(ring_is_right(ring<2, Ring::right>, 2));
    CHECK(!ring_is_right(ring<4, Ring::waits_for_too_few>, 4));
    CHECK(!ring_is_right(ring<4, Ring::no_barrier>, 4));
    CHECK(!ring_is_right(ring<2, Ring::fills_before_barrier>, 2));
    test_groups();
    test_addresses();
    return report("cuda_copies");
}

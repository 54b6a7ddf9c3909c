// What a kernel may not do, and that the emulator says so: each wrong kernel beside the right one.
#include <string>

#include "cuda/ptx.h"
#include "device_array.h"

using namespace smolvla::cuda;

namespace {

// --- a missing barrier ---------------------------------------------------------------------------

template <bool BARRIER>
__global__ void reverse(const int* in, int* out) {
    int* shared = shared_memory<int>();
    const int n = int(blockDim.x), i = int(threadIdx.x);
    shared[i] = in[i];
    if (BARRIER) __syncthreads();
    out[i] = shared[n - 1 - i];
}

// Within one warp: neighbours of 32 lanes without __syncwarp.
template <bool BARRIER>
__global__ void rotate(const int* in, int* out) {
    int* shared = shared_memory<int>();
    const int i = int(threadIdx.x);
    shared[i] = in[i];
    if (BARRIER) __syncwarp();
    out[i] = shared[(i / 32) * 32 + (i + 1) % 32];
}

template <class Kernel, class Expected>
bool is_right(Kernel kernel, int threads, Expected expected) {
    std::vector<int> in(static_cast<size_t>(threads));
    for (int i = 0; i < threads; ++i) in[size_t(i)] = 1000 + i;
    bool right = true;
    in_every_order([&] {
        DeviceArray<int> device_in(in), device_out(in.size());
        CHECK(!launch(kernel, Launch{1, unsigned(threads), in.size() * 4}, device_in.data(),
                      device_out.data()));
        const std::vector<int> out = device_out.read();
        for (int i = 0; i < threads; ++i) right = right && out[size_t(i)] == 1000 + expected(i);
    });
    return right;
}

void test_missing_barriers() {
    for (int threads : {1, 7, 32, 33, 48, 96, 250, 1024}) {
        const auto reversed = [=](int i) { return threads - 1 - i; };
        CHECK(is_right(reverse<true>, threads, reversed));
        CHECK(threads == 1 || !is_right(reverse<false>, threads, reversed));
    }
    const auto rotated = [](int i) { return i / 32 * 32 + (i + 1) % 32; };
    CHECK(is_right(rotate<true>, 64, rotated));
    CHECK(!is_right(rotate<false>, 64, rotated));
}

// Uninitialised shared memory is NaN, also after another block used it.
__global__ void leak(float* out) {
    float* shared = shared_memory<float>();
    out[blockIdx.x] = shared[0];
    shared[0] = 1.0f;
}

void test_poison() {
    DeviceArray<float> out(3);
    CHECK(!launch(leak, Launch{3, 1, 4}, out.data()));
    for (float value : out.read()) CHECK(value != value);
}

// --- divergence ----------------------------------------------------------------------------------

__global__ void divergent_mma(float* out, int lanes) {
    float d[4] = {};
    const uint32_t a[4] = {};
    if (lane_index() < lanes) mma_bf16(d, a, 0, 0);
    out[threadIdx.x] = d[0];
}
__global__ void two_operations(float* out) {
    const float value = out[threadIdx.x];
    if (lane_index() % 2)
        out[threadIdx.x] = shuffle_xor(value, 2);
    else
        out[threadIdx.x] = float(__all_sync(kAllLanes, value > 0));
}
// The barrier never fills: half of the first warp does not come.
__global__ void barrier_or_shuffle(float* out) {
    if (threadIdx.x < 16 || threadIdx.x >= 32)
        __syncthreads();
    else
        out[threadIdx.x] = sum_over(out[threadIdx.x]);
}
// Half of a warp exits: __syncthreads counts who lives, a shuffle among the living is fine.
__global__ void early_exit(float* out) {
    if (threadIdx.x % 32 >= 16) return;
    __syncthreads();
    out[threadIdx.x] = shuffle_xor(float(threadIdx.x), 1);
}
__global__ void shuffle_from_the_dead(float* out) {
    if (threadIdx.x % 32 >= 16) return;
    out[threadIdx.x] = shuffle_xor(1.0f, 16);
}
__global__ void half_mask(float* out) {
    if (lane_index() < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
    if (lane_index() < 16) __syncwarp(0x0000ffffu);
}
__global__ void foreign_mask(float* out) {
    out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.0f, 1);
}

void test_divergence() {
    DeviceArray<float> out(std::vector<float>(64, 1.0f));
    in_every_order([&] {
        const auto fault = [&](auto kernel, unsigned threads, auto... more) {
            return fault_of([&] { launch(kernel, Launch{2, threads}, out.data(), more...); });
        };
        CHECK(fault(divergent_mma, 64, 32).empty());
        const std::string partial = fault(divergent_mma, 64, 31);
        CHECK(contains(partial, "divergence"));
        CHECK(contains(partial, "divergent_mma"));
        CHECK(contains(partial, "mma.m16n8k16.bf16"));
        CHECK(contains(fault(divergent_mma, 48, 32), "needs all 32 lanes"));
        CHECK(contains(fault(two_operations, 32), "divergence"));
        CHECK(contains(fault(barrier_or_shuffle, 32), "divergence"));
        const std::string stuck = fault(barrier_or_shuffle, 64);
        CHECK(contains(stuck, "divergence"));
        if (emulator::options().seed == 0) {
            CHECK(contains(stuck, "no thread can run, 64 wait"));
            CHECK(contains(stuck, "warp 0 lane 0 at __syncthreads"));
        }
        CHECK(contains(fault(foreign_mask, 32), "divergence"));
        CHECK(fault(early_exit, 64).empty());
        CHECK(fault(half_mask, 16).empty());
        CHECK(fault(half_mask, 32).empty());  // the other half exits: nobody is left to wait for
    });
    CHECK(!launch(early_exit, Launch{1, 64}, out.data()));
    const std::vector<float> values = out.read();
    for (int i = 0; i < 64; ++i)
        if (i % 32 < 16) CHECK(values[size_t(i)] == float(i ^ 1));
    CHECK(!launch(shuffle_from_the_dead, Launch{1, 32}, out.data()));
    CHECK(out.read()[0] != 1.0f);
}

// --- bounds --------------------------------------------------------------------------------------

// One lane gives another address than the rest.
__global__ void load_row(uint32_t* out, int lane, int offset) {
    uint32_t r[4];
    const unsigned at = lane_index() == lane ? unsigned(offset) : 0;
    ldmatrix_x4(r, shared_address(shared_memory<char>()) + at);
    out[lane_index()] = r[0];
}
__global__ void name_address(char* elsewhere, uint32_t* out) { out[0] = shared_address(elsewhere); }
#if !defined(__SANITIZE_ADDRESS__)  // which would stop the program, at the very store
__global__ void write_past(int at) { shared_memory<char>()[at] = 1; }
#endif

void test_bounds() {
    DeviceArray<uint32_t> out(32);
    for (const int lane : {0, 31}) {
        const auto row = [&](int offset) {
            return fault_of([&] { launch(load_row, Launch{1, 32, 64}, out.data(), lane, offset); });
        };
        CHECK(row(48).empty());
        CHECK(contains(row(8), "misaligned"));
        CHECK(contains(row(-16), "out of bounds"));
        const std::string beyond = row(64);
        CHECK(contains(beyond, "out of bounds") && contains(beyond, "load_row"));
        CHECK(contains(beyond, lane ? "thread 31" : "thread 0"));
    }
    CHECK(contains(fault_of([&] {
                       launch(name_address, Launch{1, 1, 64}, reinterpret_cast<char*>(out.data()),
                              out.data());
                   }),
                   "not in shared memory"));
#if !defined(__SANITIZE_ADDRESS__)
    CHECK(fault_of([&] { launch(write_past, Launch{1, 1, 50}, 49); }).empty());
    CHECK(contains(fault_of([&] { launch(write_past, Launch{1, 1, 50}, 50); }), "out of bounds"));
    CHECK(contains(fault_of([&] { launch(write_past, Launch{1, 1, 50}, -1); }), "out of bounds"));
#endif
}

// After every fault the next launch is as good as the first.
void test_recovery() {
    CHECK(is_right(reverse<true>, 96, [](int i) { return 95 - i; }));
}

}  // namespace

int main() {
    test_missing_barriers();
    test_poison();
    test_divergence();
    test_recovery();
    test_bounds();
    test_recovery();
    return report("cuda_faults");
}

// Every warp-wide wrapper of csrc/cuda/ptx.h against what the PTX ISA says of it, element by
// element, with matrices as the reference.
#include <cmath>
#include <random>

#include "cuda/ptx.h"
#include "device_array.h"

using namespace smolvla::cuda;

namespace {

uint16_t narrow(float x) { return bits_as<uint16_t>(__float2bfloat16_rn(x)); }
float widen(uint16_t x) { return __bfloat162float(bits_as<__nv_bfloat16>(x)); }

// --- one mma, operands in registers as the layouts in ptx.h say ----------------------------------

__global__ void one_mma_16(const uint16_t* a, const uint16_t* b, const float* c, float* d) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    const auto pair = [](const uint16_t* from) { return from[0] | uint32_t(from[1]) << 16; };
    const uint32_t fragment[4] = {pair(a + 16 * g + 2 * t), pair(a + 16 * (g + 8) + 2 * t),
                                  pair(a + 16 * g + 2 * t + 8), pair(a + 16 * (g + 8) + 2 * t + 8)};
    // b is [8 columns, 16], a weight as it lies.
    const uint32_t b0 = pair(b + 16 * g + 2 * t), b1 = pair(b + 16 * g + 2 * t + 8);
    float sum[4] = {c[8 * g + 2 * t], c[8 * g + 2 * t + 1], c[8 * (g + 8) + 2 * t],
                    c[8 * (g + 8) + 2 * t + 1]};
    mma_bf16(sum, fragment, b0, b1);
    d[8 * g + 2 * t] = sum[0], d[8 * g + 2 * t + 1] = sum[1];
    d[8 * (g + 8) + 2 * t] = sum[2], d[8 * (g + 8) + 2 * t + 1] = sum[3];
}

void test_mma_16(std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<uint16_t> a(16 * 16), b(8 * 16);
    std::vector<float> c(16 * 8);
    for (auto& x : a) x = narrow(normal(random));
    for (auto& x : b) x = narrow(normal(random));
    for (auto& x : c) x = normal(random);
    DeviceArray<uint16_t> device_a(a), device_b(b);
    DeviceArray<float> device_c(c), device_d(16 * 8);
    CHECK(!launch(one_mma_16, Launch{1, 32}, device_a.data(), device_b.data(), device_c.data(),
                  device_d.data()));
    const std::vector<float> d = device_d.read();
    for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 8; ++n) {
            double exact = c[size_t(8 * m + n)], magnitude = std::fabs(exact);
            for (int k = 0; k < 16; ++k) {
                const double product =
                    double(widen(a[size_t(16 * m + k)])) * widen(b[size_t(16 * n + k)]);
                exact += product, magnitude += std::fabs(product);
            }
            // 16 roundings of partial sums.
            CHECK(std::fabs(d[size_t(8 * m + n)] - exact) <= 16 * 0x1p-24 * magnitude);
        }
    }
}

// Each pair (row, k) and (k, column) alone: one product in one place, nothing elsewhere.
void test_mma_16_places() {
    const uint16_t one = 0x3f80, two = 0x4000;
    for (int k = 0; k < 16; ++k) {
        for (int place = 0; place < 16; ++place) {
            const int m = place, n = (place * 3 + k) % 8;
            std::vector<uint16_t> a(16 * 16), b(8 * 16);
            a[size_t(16 * m + k)] = one;
            b[size_t(16 * n + k)] = two;
            DeviceArray<uint16_t> device_a(a), device_b(b);
            DeviceArray<float> device_c(std::vector<float>(16 * 8, 0.5f)), device_d(16 * 8);
            CHECK(!launch(one_mma_16, Launch{1, 32}, device_a.data(), device_b.data(),
                          device_c.data(), device_d.data()));
            const std::vector<float> d = device_d.read();
            for (int i = 0; i < 16 * 8; ++i) CHECK(d[size_t(i)] == (i == 8 * m + n ? 2.5f : 0.5f));
        }
    }
}

__global__ void one_mma_8(const int8_t* a, const int8_t* b, const int* c, int* d) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    const auto four = [](const int8_t* from) {
        uint32_t word;
        memcpy(&word, from, 4);
        return word;
    };
    const uint32_t fragment[4] = {four(a + 32 * g + 4 * t), four(a + 32 * (g + 8) + 4 * t),
                                  four(a + 32 * g + 4 * t + 16),
                                  four(a + 32 * (g + 8) + 4 * t + 16)};
    int sum[4] = {c[8 * g + 2 * t], c[8 * g + 2 * t + 1], c[8 * (g + 8) + 2 * t],
                  c[8 * (g + 8) + 2 * t + 1]};
    mma_s8(sum, fragment, four(b + 32 * g + 4 * t), four(b + 32 * g + 4 * t + 16));
    d[8 * g + 2 * t] = sum[0], d[8 * g + 2 * t + 1] = sum[1];
    d[8 * (g + 8) + 2 * t] = sum[2], d[8 * (g + 8) + 2 * t + 1] = sum[3];
}

void test_mma_8(std::mt19937& random) {
    std::vector<int8_t> a(16 * 32), b(8 * 32);
    std::vector<int> c(16 * 8);
    for (auto& x : a) x = int8_t(random());
    for (auto& x : b) x = int8_t(random());
    for (auto& x : c) x = int(random() % 100000) - 50000;
    DeviceArray<int8_t> device_a(a), device_b(b);
    DeviceArray<int> device_c(c), device_d(16 * 8);
    CHECK(!launch(one_mma_8, Launch{1, 32}, device_a.data(), device_b.data(), device_c.data(),
                  device_d.data()));
    const std::vector<int> d = device_d.read();
    for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 8; ++n) {
            int exact = c[size_t(8 * m + n)];
            for (int k = 0; k < 32; ++k) exact += a[size_t(32 * m + k)] * b[size_t(32 * n + k)];
            CHECK(d[size_t(8 * m + n)] == exact);
        }
    }
}

// --- ldmatrix ------------------------------------------------------------------------------------

// The rows lie in a scrambled order, so that an address is used as a lane gives it.
__host__ __device__ int scrambled(int row) { return row * 13 % 32; }

template <bool TRANSPOSED>
__global__ void load_matrices(uint32_t* out) {
    uint16_t* shared = shared_memory<uint16_t>();
    for (int column = 0; column < 8; ++column)
        shared[8 * scrambled(lane_index()) + column] = uint16_t(100 * lane_index() + column);
    __syncwarp();
    const uint32_t address = shared_address(shared) + 16 * uint32_t(scrambled(lane_index()));
    uint32_t r[4];
    TRANSPOSED ? ldmatrix_x4_trans(r, address) : ldmatrix_x4(r, address);
    for (int i = 0; i < 4; ++i) out[4 * lane_index() + i] = r[i];
}

template <bool TRANSPOSED>
void test_ldmatrix() {
    DeviceArray<uint32_t> device_out(32 * 4);
    CHECK(!launch(load_matrices<TRANSPOSED>, Launch{1, 32, 512}, device_out.data()));
    const std::vector<uint32_t> out = device_out.read();
    for (int l = 0; l < 32; ++l) {
        const int g = l / 4, t = l % 4;
        for (int i = 0; i < 4; ++i) {
            const auto value = [&](int row, int column) {
                return uint32_t(100 * (8 * i + row) + column);
            };
            const uint32_t expected = TRANSPOSED ? value(2 * t, g) | value(2 * t + 1, g) << 16
                                                 : value(g, 2 * t) | value(g, 2 * t + 1) << 16;
            CHECK(out[size_t(4 * l + i)] == expected);
        }
    }
}

// --- a whole small GEMM through shared memory, ldmatrix and mma ----------------------------------

// y [m, n] = x [m, k] w[n, k]^T with 16 rows and 16 columns a warp; k a multiple of 16.
__global__ void small_gemm(const uint16_t* x, const uint16_t* w, float* y, int rows, int columns,
                           int depth) {
    constexpr int kPitch = 24;  // numbers: 16 and a shift of banks
    uint16_t* x_tile = shared_memory<uint16_t>() + warp_index() * 2 * 16 * kPitch;
    uint16_t* w_tile = x_tile + 16 * kPitch;
    const int warps = int(blockDim.x) / 32;
    const int row = int(blockIdx.y) * 16, column = (int(blockIdx.x) * warps + warp_index()) * 16;
    float sums[2][4] = {};
    for (int k = 0; k < depth; k += 16) {
        const int r = lane_index() / 2, c = lane_index() % 2 * 8;
        const bool x_inside = row + r < rows, w_inside = column + r < columns;
        copy_16(shared_address(x_tile + kPitch * r + c), x + (row + r) * depth + k + c,
                x_inside ? 16 : 0);
        copy_16(shared_address(w_tile + kPitch * r + c), w + (column + r) * depth + k + c,
                w_inside ? 16 : 0);
        copy_commit();
        copy_wait<0>();
        __syncwarp();
        uint32_t a[4], b[4];
        const int l = lane_index();
        ldmatrix_x4(a, shared_address(x_tile + kPitch * (l % 16) + l / 16 * 8));
        // Two n tiles: columns 0-7 with k 0-7, k 8-15; columns 8-15 likewise.
        ldmatrix_x4(b, shared_address(w_tile + kPitch * (l / 16 * 8 + l % 8) + l / 8 % 2 * 8));
        mma_bf16(sums[0], a, b[0], b[1]);
        mma_bf16(sums[1], a, b[2], b[3]);
        __syncwarp();
    }
    const int g = lane_index() / 4, t = lane_index() % 4;
    for (int tile = 0; tile < 2; ++tile) {
        for (int i = 0; i < 4; ++i) {
            const int m = row + g + i / 2 * 8, n = column + 8 * tile + 2 * t + i % 2;
            if (m < rows && n < columns) y[m * columns + n] = sums[tile][i];
        }
    }
}

void test_gemm(std::mt19937& random, int rows, int columns, int depth, int warps) {
    std::normal_distribution<float> normal;
    std::vector<uint16_t> x(size_t(rows * depth)), w(size_t(columns * depth));
    for (auto& v : x) v = narrow(normal(random));
    for (auto& v : w) v = narrow(normal(random));
    in_every_order([&] {
        DeviceArray<uint16_t> device_x(x), device_w(w);
        DeviceArray<float> device_y(size_t(rows * columns));
        const Launch how{
            dim3(unsigned((columns + 16 * warps - 1) / (16 * warps)), unsigned((rows + 15) / 16)),
            unsigned(32 * warps), size_t(warps) * 2 * 16 * 24 * 2};
        CHECK(!launch(small_gemm, how, device_x.data(), device_w.data(), device_y.data(), rows,
                      columns, depth));
        const std::vector<float> y = device_y.read();
        for (int m = 0; m < rows; ++m) {
            for (int n = 0; n < columns; ++n) {
                double exact = 0, magnitude = 0;
                for (int k = 0; k < depth; ++k) {
                    const double product =
                        double(widen(x[size_t(m * depth + k)])) * widen(w[size_t(n * depth + k)]);
                    exact += product, magnitude += std::fabs(product);
                }
                CHECK(std::fabs(y[size_t(m * columns + n)] - exact) <= depth * 0x1p-24 * magnitude);
            }
        }
    });
}

// --- shuffles ------------------------------------------------------------------------------------

constexpr int kAnswers = 7;  // of a thread

__global__ void shuffles(int* out) {
    const int l = lane_index();
    int* mine = out + kAnswers * int(threadIdx.x);
    mine[0] = shuffle_xor(l, 5);
    mine[1] = int(sum_over(float(l)));
    mine[2] = int(sum_over<4>(float(l)));
    mine[3] = int(max_over<8>(float(l)));
    mine[4] = int(__ballot_sync(kAllLanes, l % 3 == 0));
    mine[5] = 2 * __all_sync(kAllLanes, l < 32) + __all_sync(kAllLanes, l != 17);
    // Half a warp of its own accord: a mask that names it.
    mine[6] = l < 16 ? __shfl_xor_sync(0x0000ffffu, l, 1) : __shfl_xor_sync(0xffff0000u, l, 2);
    const double wide = __shfl_xor_sync(kAllLanes, l + 0.25, 1);
    if (wide != (l ^ 1) + 0.25) mine[0] = -1;
}

void test_shuffles() {
    in_every_order([] {
        DeviceArray<int> device_out(kAnswers * 96);
        CHECK(!launch(shuffles, Launch{1, 96}, device_out.data()));
        const std::vector<int> out = device_out.read();
        int votes = 0;
        for (int l = 0; l < 32; l += 3) votes |= 1 << l;
        for (int thread = 0; thread < 96; ++thread) {
            const int l = thread % 32;
            const int* mine = &out[size_t(kAnswers * thread)];
            CHECK(mine[0] == (l ^ 5));
            CHECK(mine[1] == 31 * 32 / 2);
            CHECK(mine[2] == 4 * (l / 4 * 4) + 6);
            CHECK(mine[3] == l / 8 * 8 + 7);
            CHECK(mine[4] == votes);
            CHECK(mine[5] == 2);
            CHECK(mine[6] == (l ^ (l < 16 ? 1 : 2)));
        }
    });
}

}  // namespace

int main() {
    std::mt19937 random{7};
    in_every_order([&] {
        test_mma_16(random);
        test_mma_8(random);
        test_ldmatrix<false>();
        test_ldmatrix<true>();
    });
    test_mma_16_places();
    test_gemm(random, 16, 16, 16, 1);
    test_gemm(random, 50, 72, 720, 4);
    test_gemm(random, 37, 19, 48, 3);
    test_shuffles();
    return report("cuda_warp");
}

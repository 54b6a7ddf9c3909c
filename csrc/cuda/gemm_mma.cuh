// Linear layers on tensor cores for operands that lie row by row: y = x W^T, both read along k.
//
// A block computes BM x BN of y. Slices of 64 bytes of k of its rows of x and W go through a ring
// of four stages in shared memory (cp.async), three of them on their way while one is multiplied.
// The four 16-byte chunks of a row of a stage are permuted by its row number, so that the eight
// rows that ldmatrix reads at once lie in different banks:
//
//     row 0:  0 1 2 3     row 2:  1 0 3 2     row 4:  2 3 0 1     row 6:  3 2 1 0
//     row 1:  0 1 2 3     row 3:  1 0 3 2     row 5:  2 3 0 1     row 7:  3 2 1 0
//
// The operand type (bfloat16 or int8) decides only which product is made of the fragments, and that
// sums of integers have scales. Sums leave through shared memory (finish_tile).
#pragma once

#include "cuda/epilogue.cuh"

namespace smolvla::cuda {

constexpr int kStages = 4;
constexpr int kSliceBytes = 64;  // of k, of one row, in one stage

struct Bf16Operand {
    static constexpr bool kScaled = false;
    using Sum = float;
    static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                    uint32_t b0, uint32_t b1) {
        mma_bf16(d, a, b0, b1);
    }
};
struct S8Operand {
    static constexpr bool kScaled = true;  // a sum is worth the product of two scales
    using Sum = int32_t;
    static __device__ __forceinline__ void multiply(int32_t (&d)[4], const uint32_t (&a)[4],
                                                    uint32_t b0, uint32_t b1) {
        mma_s8(d, a, b0, b1);
    }
};

// x and W of a GEMM, in bytes.
struct Operands {
    const char* x;
    size_t x_pitch;  // from row to row
    const char* w;
    size_t w_pitch;
    int rows, columns, depth_bytes;
    const float* w_scale = nullptr;  // of integers: [columns]
    int x_scale_at = 0;              // and where in a row of x, in words, its scale stands
};

// A row of a tile of sums: eight words more, so that the four rows to which half a warp writes
// pairs lie in different banks.
__host__ __device__ constexpr int sum_pitch(int columns) { return columns + 8; }

__device__ __forceinline__ int slot(int row, int chunk) {
    return row * kSliceBytes + ((chunk ^ (row / 2 & 3)) << 4);
}

// Copies rows first... of a matrix, 64 bytes from byte k on, into a stage; zeros beyond its ends.
template <int ROWS, int THREADS>
__device__ __forceinline__ void load_slice(uint32_t stage, const char* from, size_t pitch,
                                           int first, int rows, int k, int depth_bytes) {
    static_assert(ROWS * 4 % THREADS == 0, "every thread copies as many chunks");
#pragma unroll
    for (int j = 0; j < ROWS * 4 / THREADS; ++j) {
        const int i = j * THREADS + threadIdx.x, r = i / 4, chunk = i % 4, at = k + chunk * 16;
        int bytes = first + r < rows ? depth_bytes - at : 0;
        bytes = bytes < 0 ? 0 : bytes > 16 ? 16 : bytes;
        copy_16(stage + slot(r, chunk), bytes ? from + (first + r) * pitch + at : from, bytes);
    }
}

template <class Operand, int BM, int BN, int WARPS_M, int WARPS_N>
__device__ __forceinline__ void gemm_tile(const Operands& o, const Epilogue& e) {
    constexpr int kThreads = 32 * WARPS_M * WARPS_N;
    constexpr int kRowTiles = BM / WARPS_M / 16;    // m16 tiles of a warp
    constexpr int kColumnTiles = BN / WARPS_N / 8;  // n8 tiles of a warp
    static_assert(kColumnTiles % 2 == 0, "columns come in pairs of n8 tiles");
    constexpr int kStageBytes = (BM + BN) * kSliceBytes;
    const uint32_t ring = shared_address(shared_memory<char>());
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    const int warp_m = warp_index() / WARPS_N, warp_n = warp_index() % WARPS_N;
    const int row0 = blockIdx.y * BM, column0 = blockIdx.x * BN;
    const int slices = (o.depth_bytes + kSliceBytes - 1) / kSliceBytes;

    const auto load = [&](int slice) {
        if (slice < slices) {
            const uint32_t stage = ring + slice % kStages * kStageBytes;
            const int k = slice * kSliceBytes;
            load_slice<BM, kThreads>(stage, o.x, o.x_pitch, row0, o.rows, k, o.depth_bytes);
            load_slice<BN, kThreads>(stage + BM * kSliceBytes, o.w, o.w_pitch, column0, o.columns,
                                     k, o.depth_bytes);
        }
        copy_commit();  // empty groups keep the count
    };

    typename Operand::Sum sums[kRowTiles][kColumnTiles][4] = {};
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) load(s);
    for (int slice = 0; slice < slices; ++slice) {
        copy_wait<kStages - 2>();
        __syncthreads();  // the slice is there for all, and nobody reads the one before any more
        load(slice + kStages - 1);
        const uint32_t xs = ring + slice % kStages * kStageBytes;
        const uint32_t ws = xs + BM * kSliceBytes;
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // 32 bytes of k are one step of the tensor core
            uint32_t a[kRowTiles][4];
#pragma unroll
            for (int i = 0; i < kRowTiles; ++i)
                ldmatrix_x4(a[i], xs + slot(warp_m * (BM / WARPS_M) + i * 16 + lane % 16,
                                            half * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < kColumnTiles; j += 2) {
                uint32_t b[4];  // k 0..15 and 16..31 bytes of tile j, then of tile j + 1
                ldmatrix_x4(b, ws + slot(warp_n * (BN / WARPS_N) + j * 8 + lane / 16 * 8 + lane % 8,
                                         half * 2 + lane / 8 % 2));
#pragma unroll
                for (int i = 0; i < kRowTiles; ++i) {
                    Operand::multiply(sums[i][j], a[i], b[0], b[1]);
                    Operand::multiply(sums[i][j + 1], a[i], b[2], b[3]);
                }
            }
        }
    }
    copy_wait_all();
    __syncthreads();  // the ring's memory becomes the tile of sums

    constexpr int kPitch = sum_pitch(BN);
    auto* tile = shared_memory<typename Operand::Sum>();
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
        for (int upper = 0; upper < 2; ++upper)  // rows g and g + 8 of a tile
#pragma unroll
            for (int j = 0; j < kColumnTiles; ++j) {
                const int row = warp_m * (BM / WARPS_M) + i * 16 + upper * 8 + g;
                auto* to = tile + row * kPitch + warp_n * (BN / WARPS_N) + j * 8 + 2 * t;
                to[0] = sums[i][j][2 * upper];
                to[1] = sums[i][j][2 * upper + 1];
            }
    __syncthreads();
    finish_tile<false, BM, kThreads>(e, row0, column0, BN, [&](int r, int c, float (&v)[4]) {
        float scale[4] = {1.0f, 1.0f, 1.0f, 1.0f};
        if (Operand::kScaled) {
            const float* row = reinterpret_cast<const float*>(o.x + (row0 + r) * o.x_pitch);
            load_four(o.w_scale + column0 + c, o.columns - column0 - c, true, scale);
#pragma unroll
            for (int i = 0; i < 4; ++i) scale[i] *= row[o.x_scale_at];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float sum = static_cast<float>(tile[r * kPitch + c + i]);
            v[i] = Operand::kScaled ? sum * scale[i] : sum;
        }
    });
}

// The ring, and later the sums.
constexpr int shared_bytes(int bm, int bn) {
    const int ring = kStages * (bm + bn) * kSliceBytes, sums = bm * sum_pitch(bn) * 4;
    return ring > sums ? ring : sums;
}

template <int BM, int BN>
cudaError_t launch_tile(void (*kernel)(Operands, Epilogue), int threads, const Operands& o,
                        const Epilogue& e, cudaStream_t stream) {
    Launch how;
    how.grid = dim3((o.columns + BN - 1) / BN, (o.rows + BM - 1) / BM);
    how.block = dim3(threads);
    how.shared_bytes = shared_bytes(BM, BN);
    how.stream = stream;
    Epilogue there = e;
    there.wide = lies_wide(e);
    return launch(kernel, how, o, there);
}

// The largest tile that still gives every processor something to do. Two blocks of 64 x 64 take
// about as long as one of 128 x 64 would, so a grid that leaves processors idle loses.
enum class TileSize { large, middle, small };
inline TileSize tile_for(int rows, int columns, int processors) {
    const auto blocks = [&](int bm, int bn) {
        return ((rows + bm - 1) / bm) * ((columns + bn - 1) / bn);
    };
    if (rows > 64 && blocks(128, 128) >= processors) return TileSize::large;
    if (blocks(64, 64) >= processors) return TileSize::middle;
    return TileSize::small;
}

}  // namespace smolvla::cuda

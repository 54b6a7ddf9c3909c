// Linear layers of 4-bit weights and bfloat16 rows (W4A16): few rows, so weights are what costs.
//
// The operands change places: 16 rows of W are the tensor core's m16, tokens its n8, so that 50
// tokens cost 56. A warp takes 16 rows of W and every SPLIT-th run of blocks of 64 of k; it reads
// its words in order, once, past L1, and turns them into bfloat16 in registers (exactly: a code is
// a small whole number). Sums of a group are float32 and are multiplied by the group's scale, so no
// weight is ever rounded. The warps that share rows add up in shared memory at the end, in order:
// the same bytes every time.
#include "cuda/epilogue.cuh"
#include "cuda/fragments.h"

namespace smolvla::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;

struct W4Operands {
    Mat x;
    const uint4* w;
    const uint32_t* scales;
    int tiles, blocks, groups, group;  // of 16 rows; of 64 of k; group: 32, 64 or 128
    int split;                         // warps that share 16 rows
};

// x of one token and one block of k as this lane multiplies it: eight registers, two a step.
struct TokenSlice {
    uint32_t r[8];
};
__device__ __forceinline__ TokenSlice load_slice(const Mat& x, int token, int block, int t) {
    TokenSlice s = {};
    if (token >= x.rows) return s;
    const uint4* from =
        reinterpret_cast<const uint4*>(x.data + token * x.ld + block * (kFragmentDepth / 2)) + t;
    // Behind its columns, a multiple of 8, a row may end: nothing is read there.
    const int k = block * kFragmentDepth + 8 * t;
    const uint4 none = {};
    const uint4 low = k < x.cols ? from[0] : none, high = k + 32 < x.cols ? from[4] : none;
    s.r[0] = low.x, s.r[1] = low.y, s.r[2] = low.z, s.r[3] = low.w;
    s.r[4] = high.x, s.r[5] = high.y, s.r[6] = high.z, s.r[7] = high.w;
    return s;
}

// One block of k of 16 rows of W in this lane, as the four steps want it.
__device__ __forceinline__ void expand(uint4 word, uint32_t (&a)[4][4]) {
    const uint32_t step_words[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int s = 0; s < 4; ++s) {
        __nv_bfloat162 pairs[4];
        expand_s4_bf16(step_words[s], pairs);
#pragma unroll
        for (int i = 0; i < 4; ++i) a[s][i] = as_bits(pairs[i]);
    }
}

// TOKEN_TILES: n8 tiles of tokens of a block. TILES: of 16 rows of W that a warp takes, so that
// what it reads of x serves all of them. SCALES: groups that a block of k may touch.
template <int TOKEN_TILES, int TILES, int SCALES>
__device__ __forceinline__ void w4_tile(const W4Operands& o, const Epilogue& e) {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    const int part = warp_index() % o.split;
    const int tile0 = (blockIdx.x * (kWarps / o.split) + warp_index() / o.split) * TILES;
    const int token0 = blockIdx.y * (TOKEN_TILES * 8);
    const int first = o.blocks * part / o.split, last = o.blocks * (part + 1) / o.split;

    float sums[TILES][TOKEN_TILES][4] = {};
    // A tile behind the last computes with the last one's codes, and nobody stores it.
    const uint4* words[TILES];
    const uint32_t* scales[TILES];
    uint4 next[TILES];
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
        const size_t tile = tile0 + m < o.tiles ? tile0 + m : o.tiles - 1;
        words[m] = o.w + (tile * o.blocks + first) * 32 + lane;
        scales[m] = o.scales + tile * o.groups * 8 + g;
        if (first < last) next[m] = load_streamed(words[m]);
    }
    for (int block = first; block < last; ++block) {
        uint32_t a[TILES][4][4];
        __half2 scale[TILES][SCALES];
        const int group = block * kFragmentDepth / o.group;
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            expand(next[m], a[m]);
            words[m] += 32;
            if (block + 1 < last) next[m] = load_streamed(words[m]);  // on its way meanwhile
#pragma unroll
            for (int i = 0; i < SCALES; ++i) {
                const int here = group + i < o.groups ? group + i : group;  // beyond: codes are 0
                scale[m][i] = as_half2(scales[m][here * 8]);
            }
        }
#pragma unroll
        for (int n = 0; n < TOKEN_TILES; ++n) {
            const TokenSlice x = load_slice(o.x, token0 + n * 8 + g, block, t);
#pragma unroll
            for (int m = 0; m < TILES; ++m)
#pragma unroll
                for (int i = 0; i < SCALES; ++i) {
                    constexpr int kSteps = 4 / SCALES;  // two steps are 32 of k, the smallest group
                    float partial[4] = {};
#pragma unroll
                    for (int s = i * kSteps; s < (i + 1) * kSteps; ++s)
                        mma_bf16(partial, a[m][s], x.r[2 * s], x.r[2 * s + 1]);
                    const float lower = __low2float(scale[m][i]);
                    const float upper = __high2float(scale[m][i]);
                    float (&sum)[4] = sums[m][n];
                    sum[0] = fmaf(partial[0], lower, sum[0]);
                    sum[1] = fmaf(partial[1], lower, sum[1]);
                    sum[2] = fmaf(partial[2], upper, sum[2]);
                    sum[3] = fmaf(partial[3], upper, sum[3]);
                }
        }
    }

    // [warp][tile][token tile][4][lane]
    float* shared = shared_memory<float>();
#pragma unroll
    for (int m = 0; m < TILES; ++m)
#pragma unroll
        for (int n = 0; n < TOKEN_TILES; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                shared[(((warp_index() * TILES + m) * TOKEN_TILES + n) * 4 + i) * 32 + lane] =
                    sums[m][n][i];
    __syncthreads();
    // The tiles of a block follow each other along the columns; the sums of the warps of one are
    // added in order.
    const int here = kWarps / o.split * TILES * kFragmentRows, column0 = blockIdx.x * here;
    const auto total = [&](int r, int c, float (&v)[4]) {
        const int tile = c / kFragmentRows, upper = c / 8 % 2, row = c % 8;
        const int warp = tile / TILES * o.split, m = tile % TILES;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int at = (r / 8 * 4 + upper * 2 + r % 2) * 32 + (row + i) * 4 + r % 8 / 2;
            v[i] = 0.0f;
            for (int p = 0; p < o.split; ++p)
                v[i] += shared[((warp + p) * TILES + m) * TOKEN_TILES * 128 + at];
        }
    };
    finish_tile<false, TOKEN_TILES * 8, kThreads>(e, token0, column0, here, total);
}

template <int TOKEN_TILES, int TILES, int SCALES>
__global__ void __launch_bounds__(kThreads, 1) gemm_w4_kernel(W4Operands o, Epilogue e) {
    w4_tile<TOKEN_TILES, TILES, SCALES>(o, e);
}

constexpr int shared_bytes(int token_tiles, int tiles) {
    return kWarps * tiles * token_tiles * 4 * 32 * int(sizeof(float));
}

template <int TOKEN_TILES, int TILES>
cudaError_t launch_w4(const W4Operands& o, const Epilogue& e, cudaStream_t stream) {
    const int tiles_here = kWarps / o.split * TILES;
    Launch how;
    how.grid = dim3((o.tiles + tiles_here - 1) / tiles_here,
                    (o.x.rows + TOKEN_TILES * 8 - 1) / (TOKEN_TILES * 8));
    how.block = dim3(kThreads);
    how.shared_bytes = shared_bytes(TOKEN_TILES, TILES);
    how.stream = stream;
    Epilogue there = e;
    there.wide = lies_wide(e);
    return o.group == 32 ? launch(gemm_w4_kernel<TOKEN_TILES, TILES, 2>, how, o, there)
                         : launch(gemm_w4_kernel<TOKEN_TILES, TILES, 1>, how, o, there);
}

}  // namespace

cudaError_t prepare_gemm_w4() {
    const cudaError_t status = allow_shared_memory(gemm_w4_kernel<7, 2, 1>, shared_bytes(7, 2));
    return status == cudaSuccess ? allow_shared_memory(gemm_w4_kernel<7, 2, 2>, shared_bytes(7, 2))
                                 : status;
}

cudaError_t gemm_w4(Mat x, const uint4* w, const uint32_t* w_scale, int group, int columns,
                    int depth, const Epilogue& e, int processors, cudaStream_t stream) {
    W4Operands o{x,
                 w,
                 w_scale,
                 (columns + kFragmentRows - 1) / kFragmentRows,
                 fragment_blocks(depth),
                 (depth + group - 1) / group,
                 group,
                 8};
    // Every block reads all of x, so it should serve as many rows of W as leave no processor idle:
    // first two tiles a warp, then fewer warps to a tile.
    const bool pairs = x.rows > 32 && o.tiles * 2 >= 3 * processors;
    const int warps_of_tiles = pairs ? (o.tiles + 1) / 2 : o.tiles;
    while (o.split > 1 && warps_of_tiles * o.split / 8 >= 2 * processors) o.split /= 2;
    if (x.rows <= 32) return launch_w4<4, 1>(o, e, stream);
    return pairs ? launch_w4<7, 2>(o, e, stream) : launch_w4<7, 1>(o, e, stream);
}

}  // namespace smolvla::cuda

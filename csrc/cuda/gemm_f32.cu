// Linear layers in float32 arithmetic: the exact path. No tensor core multiplies float32 without
// rounding it first, so this is a plain tile of fused multiply-adds; it is here to be right.
#include "cuda/epilogue.cuh"

namespace smolvla::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDepth = 16;  // of k at a time
constexpr int pitch_of(int tile) { return tile + 4; }

// A block computes TILE x TILE of y, a thread 4 x 4; SPLIT groups of threads share the sums over k,
// each a run of it, and are added up in order. What comes next of x and W is on its way to
// registers while what is in shared memory (k-major) is multiplied.
template <class W, int TILE, int SPLIT>
__device__ __forceinline__ void f32_tile(const Mat& x, const W* w, int columns, int depth,
                                         const Epilogue& e) {
    constexpr int kAcross = TILE / 4, kGroup = kAcross * kAcross, kPitch = TILE + 4;
    constexpr int kLoads = TILE * kDepth / kGroup;
    static_assert(kGroup * SPLIT == kThreads, "every thread has a place");
    static_assert(2 * kDepth <= TILE, "the sums take the place of what was read");
    float* shared = shared_memory<float>();
    const int group = threadIdx.x / kGroup, thread = threadIdx.x % kGroup;
    const int tx = thread % kAcross, ty = thread / kAcross;
    float* xs = shared + group * 2 * kDepth * kPitch;  // [kDepth][kPitch]
    float* ws = xs + kDepth * kPitch;
    const int row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE;
    const int slices = (depth + kDepth - 1) / kDepth, rounds = (slices + SPLIT - 1) / SPLIT;
    const int first = group * rounds;

    float next_x[kLoads], next_w[kLoads];
    const auto load = [&](int slice) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            const int at = i * kGroup + thread, k = slice * kDepth + at % kDepth;
            const int row = row0 + at / kDepth, column = column0 + at / kDepth;
            next_x[i] = k < depth && row < x.rows ? x.data[row * x.ld + k] : 0.0f;
            next_w[i] =
                k < depth && column < columns ? widened(w[size_t(column) * depth + k]) : 0.0f;
        }
    };
    float sums[4][4] = {};
    load(first);
    for (int round = 0; round < rounds; ++round) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            const int at = i * kGroup + thread, place = at % kDepth * kPitch + at / kDepth;
            xs[place] = next_x[i];
            ws[place] = next_w[i];
        }
        __syncthreads();
        if (round + 1 < rounds) load(first + round + 1);
#pragma unroll
        for (int k = 0; k < kDepth; ++k) {
            float a[4], b[4];
            load_four(xs + k * kPitch + ty * 4, 4, true, a);
            load_four(ws + k * kPitch + tx * 4, 4, true, b);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
        }
        __syncthreads();
    }
    // [SPLIT][TILE][kPitch], where x and W were
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
            shared[(group * TILE + ty * 4 + i) * kPitch + tx * 4 + j] = sums[i][j];
    __syncthreads();
    finish_tile<true, TILE, kThreads>(e, row0, column0, TILE, [&](int r, int c, float (&v)[4]) {
        load_four(shared + r * kPitch + c, 4, true, v);
#pragma unroll
        for (int part = 1; part < SPLIT; ++part) {
            float more[4];
            load_four(shared + (part * TILE + r) * kPitch + c, 4, true, more);
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] += more[i];
        }
    });
}

template <class W>
__global__ void __launch_bounds__(kThreads)
    gemm_f32_64x64(Mat x, const W* w, int columns, int depth, Epilogue e) {
    f32_tile<W, 64, 1>(x, w, columns, depth, e);
}
template <class W>
__global__ void __launch_bounds__(kThreads)
    gemm_f32_32x32(Mat x, const W* w, int columns, int depth, Epilogue e) {
    f32_tile<W, 32, 4>(x, w, columns, depth, e);
}

template <int TILE, int SPLIT, class W>
cudaError_t launch_f32(void (*kernel)(Mat, const W*, int, int, Epilogue), Mat x, const void* w,
                       int columns, int depth, const Epilogue& e, cudaStream_t stream) {
    Launch how;
    how.grid = dim3((columns + TILE - 1) / TILE, (x.rows + TILE - 1) / TILE);
    how.block = dim3(kThreads);
    how.shared_bytes = SPLIT * TILE * pitch_of(TILE) * sizeof(float);
    how.stream = stream;
    Epilogue there = e;
    there.wide = lies_wide(e);
    return launch(kernel, how, x, static_cast<const W*>(w), columns, depth, there);
}

// The large tile reads less, the small one keeps more processors busy and has a quarter of the
// steps one after another: it is for the action heads, which see 50 rows.
template <class W>
cudaError_t launch_either(Mat x, const void* w, int columns, int depth, const Epilogue& e,
                          int processors, cudaStream_t stream) {
    const bool large = ((x.rows + 63) / 64) * ((columns + 63) / 64) >= processors;
    return large ? launch_f32<64, 1>(gemm_f32_64x64<W>, x, w, columns, depth, e, stream)
                 : launch_f32<32, 4>(gemm_f32_32x32<W>, x, w, columns, depth, e, stream);
}

}  // namespace

cudaError_t gemm_f32(Mat x, const void* w, bool w_bf16, int columns, int depth, const Epilogue& e,
                     int processors, cudaStream_t stream) {
    return w_bf16 ? launch_either<__nv_bfloat16>(x, w, columns, depth, e, processors, stream)
                  : launch_either<float>(x, w, columns, depth, e, processors, stream);
}

}  // namespace smolvla::cuda

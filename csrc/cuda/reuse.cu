// What a plan needs that leaves work out: rows picked by number and put back, added and compared;
// blocks of a frame compared with a reference, and copied to it. All are bound by memory or by
// starting. A sum is made by one warp in one order, whatever else is launched beside it.
#include "cuda/epilogue.cuh"

namespace smolvla::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kChangeThreads = 256;  // of a block, which has 16 patches in SmolVLA
constexpr int kChangeWarps = kChangeThreads / 32;

Launch blocks_of(int threads, dim3 grid, cudaStream_t stream) {
    Launch how;
    how.grid = grid;
    how.block = dim3(threads);
    how.stream = stream;
    return how;
}

// Of numbers of 0 or more the order of their bits is their own, and NaN is above all of them.
__device__ __forceinline__ int size_bits(float x) { return bits_as<int>(x) & 0x7fffffff; }

__device__ __forceinline__ int most_of_warp(int bits) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) bits = max(bits, shuffle_xor(bits, mask));
    return bits;
}
__device__ __forceinline__ double sum_of_warp(double value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

// y[to[i]] = x[from[i]]; without numbers, i.
__global__ void __launch_bounds__(kThreads)
    move_rows_kernel(Mat x, const int* from, Mat y, const int* to) {
    const int i = blockIdx.x;
    const float* source = x.data + (from ? from[i] : i) * x.ld;
    float* target = y.data + (to ? to[i] : i) * y.ld;
    for (int c = threadIdx.x; c < x.cols; c += kThreads) target[c] = source[c];
}

__global__ void __launch_bounds__(kThreads) add_kernel(Mat x, Mat z, float scale, Mat y) {
    const int row = blockIdx.x;
    for (int c = threadIdx.x; c < y.cols; c += kThreads)
        y.data[row * y.ld + c] = x.data[row * x.ld + c] + z.data[row * z.ld + c] * scale;
}

// Sums in double, as on the CPU: what is decided by them should not depend on the device.
__global__ void __launch_bounds__(kThreads) compare_kernel(Mat a, Mat b, int columns, Mat sums) {
    const int row = blockIdx.x * kWarps + warp_index(), lane = lane_index();
    if (row >= a.rows) return;
    double ab = 0, aa = 0, bb = 0, off = 0;
    int most = 0;
    for (int c = lane; c < columns; c += 32) {
        const float x = a.data[row * a.ld + c], y = b.data[row * b.ld + c], d = x - y;
        ab += double(x) * double(y);
        aa += double(x) * double(x);
        bb += double(y) * double(y);
        off += double(d) * double(d);
        most = max(most, size_bits(d));
    }
    ab = sum_of_warp(ab), aa = sum_of_warp(aa);
    bb = sum_of_warp(bb), off = sum_of_warp(off);
    most = most_of_warp(most);
    if (lane != 0) return;
    float* to = sums.data + row * sums.ld;
    to[0] = static_cast<float>(ab), to[1] = static_cast<float>(aa);
    to[2] = static_cast<float>(bb), to[3] = static_cast<float>(off);
    to[4] = bits_as<float>(most);
}

// A block of threads a block of the frame, a warp a patch after the other.
__global__ void __launch_bounds__(kChangeThreads)
    block_change_kernel(const float* pixels, const float* reference, int height, int width,
                        int patch, int scale, float* change) {
    const int side = patch * scale, across = width / side, area = patch * patch;
    const int y0 = blockIdx.x / across * side, x0 = blockIdx.x % across * side;
    int most = 0;
    for (int p = warp_index(); p < scale * scale; p += kChangeWarps) {
        const int top = y0 + p / scale * patch, left = x0 + p % scale * patch;
        float sum = 0;
        for (int i = lane_index(); i < 3 * area; i += 32) {
            const int c = i / area, y = top + i % area / patch, x = left + i % patch;
            const size_t at = (size_t(c) * height + y) * width + x;
            sum += fabsf(pixels[at] - reference[at]);
        }
        most = max(most, size_bits(sum_over<>(sum) / static_cast<float>(6 * area)));
    }
    int* of_warps = shared_memory<int>();
    if (lane_index() == 0) of_warps[warp_index()] = most;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 0; w < kChangeWarps; ++w) most = max(most, of_warps[w]);
    change[blockIdx.x] = bits_as<float>(most);
}

__global__ void __launch_bounds__(kThreads)
    copy_blocks_kernel(const float* pixels, int height, int width, int side, const int* ids,
                       float* to) {
    const int id = ids[blockIdx.x], across = width / side;
    const int y0 = id / across * side, x0 = id % across * side;
    const size_t plane = blockIdx.y * size_t(height) * width;
    for (int i = threadIdx.x; i < side * side; i += kThreads) {
        const size_t at = plane + size_t(y0 + i / side) * width + x0 + i % side;
        to[at] = pixels[at];
    }
}

}  // namespace

cudaError_t pick_rows(Mat x, const int* ids, Mat out, cudaStream_t stream) {
    return launch(move_rows_kernel, blocks_of(kThreads, dim3(out.rows), stream), x, ids, out,
                  static_cast<const int*>(nullptr));
}

cudaError_t put_rows(Mat x, const int* ids, Mat out, cudaStream_t stream) {
    return launch(move_rows_kernel, blocks_of(kThreads, dim3(x.rows), stream), x,
                  static_cast<const int*>(nullptr), out, ids);
}

cudaError_t add_rows(Mat x, Mat z, float scale, Mat y, cudaStream_t stream) {
    return launch(add_kernel, blocks_of(kThreads, dim3(y.rows), stream), x, z, scale, y);
}

cudaError_t compare_rows(Mat a, Mat b, int columns, Mat sums, cudaStream_t stream) {
    const dim3 grid((a.rows + kWarps - 1) / kWarps);
    return launch(compare_kernel, blocks_of(kThreads, grid, stream), a, b, columns, sums);
}

cudaError_t block_change(const float* pixels, const float* reference, int height, int width,
                         int patch, int scale, float* change, cudaStream_t stream) {
    const int side = patch * scale;
    Launch how = blocks_of(kChangeThreads, dim3(height / side * (width / side)), stream);
    how.shared_bytes = kChangeWarps * sizeof(int);
    return launch(block_change_kernel, how, pixels, reference, height, width, patch, scale, change);
}

cudaError_t copy_blocks(const float* pixels, int height, int width, int side, const int* ids,
                        int count, float* to, cudaStream_t stream) {
    return launch(copy_blocks_kernel, blocks_of(kThreads, dim3(count, 3), stream), pixels, height,
                  width, side, ids, to);
}

}  // namespace smolvla::cuda

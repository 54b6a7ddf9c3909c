// What happens to queries, keys and values between their linear layer and attention: rotary
// positions, and the way into the store that attention reads. A block a row.
#include "cuda/epilogue.cuh"

namespace smolvla::cuda {
namespace {

constexpr int kThreads = 128;

Launch a_block_a_row(int rows, cudaStream_t stream) {
    Launch how;
    how.grid = dim3(rows);
    how.block = dim3(kThreads);
    how.stream = stream;
    return how;
}

// Rotates the heads of a row by the angles of `position`; keep(column, value) gets every result.
template <class Keep>
__device__ __forceinline__ void rotate(const Mat& x, int row, int heads, const Mat& cosine,
                                       const Mat& sine, int position, const Keep& keep) {
    const int half = cosine.cols;
    const float* co = cosine.data + position * cosine.ld;
    const float* si = sine.data + position * sine.ld;
    for (int i = threadIdx.x; i < heads * half; i += kThreads) {
        const int d = i % half, at = i / half * 2 * half + d;
        const float a = get(x, row, at), b = get(x, row, at + half);
        const float first = a * co[d] - b * si[d], second = b * co[d] + a * si[d];
        put(x, row, at, first);
        put(x, row, at + half, second);
        keep(at, first);
        keep(at + half, second);
    }
}

// Where column `column` of a row's keys or values goes.
__device__ __forceinline__ size_t place(const DeviceKv& kv, int position, int column) {
    const size_t head = column / kv.head_dim;
    return (head * kv.capacity + position) * kv.head_dim + column % kv.head_dim;
}

__global__ void __launch_bounds__(kThreads)
    rope_kernel(Mat x, int heads, Mat cosine, Mat sine, const int* first) {
    const int row = blockIdx.x;
    rotate(x, row, heads, cosine, sine, (first ? *first : 0) + row, [](int, float) {});
}

// positions null: first and those behind it.
template <class Kv>
__global__ void __launch_bounds__(kThreads)
    store_kv_kernel(Mat keys, Mat values, DeviceKv kv, const int* first, const int* positions) {
    const int row = blockIdx.x;
    const int position = positions ? positions[row] : (first ? *first : 0) + row;
    if (unsigned(position) >= unsigned(kv.capacity)) return;
    for (int i = threadIdx.x; i < kv.kv_heads * kv.head_dim; i += kThreads) {
        const size_t at = place(kv, position, i);
        narrow(get(keys, row, i), static_cast<Kv*>(kv.keys)[at]);
        narrow(get(values, row, i), static_cast<Kv*>(kv.values)[at]);
    }
}

// The store has bfloat16 or, beside rows of float32 only, float32: so a key is rounded once,
// wherever it comes from.
template <class Kv>
__global__ void __launch_bounds__(kThreads)
    rope_store_kernel(Mat q, int heads, Mat keys, Mat values, Mat cosine, Mat sine,
                      const int* first, DeviceKv kv) {
    const int row = blockIdx.x, position = (first ? *first : 0) + row;
    rotate(q, row, heads, cosine, sine, position, [](int, float) {});
    const bool stored = unsigned(position) < unsigned(kv.capacity);
    rotate(keys, row, kv.kv_heads, cosine, sine, position, [&](int column, float value) {
        if (stored) narrow(value, static_cast<Kv*>(kv.keys)[place(kv, position, column)]);
    });
    if (!stored) return;
    for (int i = threadIdx.x; i < kv.kv_heads * kv.head_dim; i += kThreads)
        narrow(get(values, row, i), static_cast<Kv*>(kv.values)[place(kv, position, i)]);
}

cudaError_t store(Mat keys, Mat values, const DeviceKv& kv, const int* first, const int* positions,
                  cudaStream_t stream) {
    const Launch how = a_block_a_row(keys.rows, stream);
    return kv.bf16 ? launch(store_kv_kernel<__nv_bfloat16>, how, keys, values, kv, first, positions)
                   : launch(store_kv_kernel<float>, how, keys, values, kv, first, positions);
}

}  // namespace

cudaError_t rope(Mat x, int heads, Mat cosine, Mat sine, const int* first, cudaStream_t stream) {
    return launch(rope_kernel, a_block_a_row(x.rows, stream), x, heads, cosine, sine, first);
}

cudaError_t store_kv(Mat keys, Mat values, const DeviceKv& kv, const int* first,
                     cudaStream_t stream) {
    return store(keys, values, kv, first, nullptr, stream);
}

cudaError_t scatter_kv(Mat keys, Mat values, const DeviceKv& kv, const int* positions,
                       cudaStream_t stream) {
    return store(keys, values, kv, nullptr, positions, stream);
}

cudaError_t rope_store(Mat q, int heads, Mat keys, Mat values, Mat cosine, Mat sine,
                       const int* first, const DeviceKv& kv, cudaStream_t stream) {
    const Launch how = a_block_a_row(q.rows, stream);
    return kv.bf16 ? launch(rope_store_kernel<__nv_bfloat16>, how, q, heads, keys, values, cosine,
                            sine, first, kv)
                   : launch(rope_store_kernel<float>, how, q, heads, keys, values, cosine, sine,
                            first, kv);
}

}  // namespace smolvla::cuda

// Operations on rows: norms, rounding to integers, copies, the flow's step.
#include "cuda/epilogue.cuh"

namespace smolvla::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

Launch a_warp_a_row(int rows, cudaStream_t stream) {
    Launch how;
    how.grid = dim3((rows + kWarps - 1) / kWarps);
    how.block = dim3(kThreads);
    how.stream = stream;
    return how;
}

Launch a_block_a_row(int rows, cudaStream_t stream) {
    Launch how;
    how.grid = dim3(rows);
    how.block = dim3(kThreads);
    how.stream = stream;
    return how;
}

struct CodeRow {
    int words, scale_at;  // of codes; where the scale stands
};
CodeRow code_row(int columns) { return {code_words(columns), scale_at(code_words(columns))}; }

// Writes row y of Storage::i8 from what value(column) gives: int8 in [-127, 127] by the largest
// magnitude; a tiny row becomes zero, one that is not finite keeps that in its scale, as on the
// CPU. The sums that the CPU's layout has between codes and scale are not written: nobody reads
// them here.
template <class Value>
__device__ __forceinline__ void put_codes(float* y, int columns, CodeRow at, const Value& value) {
    const int lane = lane_index();
    float most = 0.0f;
    bool finite = true;
    for (int c = lane; c < columns; c += 32) {
        const float v = value(c);
        finite = finite && isfinite(v);
        most = fmaxf(most, fabsf(v));
    }
    most = max_over<>(most);
    const bool all_finite = __all_sync(kAllLanes, finite);
    const bool live = all_finite && most >= 0x1p-100f;
    const float inverse = live ? 127.0f / most : 0.0f;
    for (int word = lane; word < at.words; word += 32) {
        int code[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int c = 4 * word + i;
            code[i] = live && c < columns ? round_to_int(value(c) * inverse) : 0;
        }
        reinterpret_cast<uint32_t*>(y)[word] = pack_s8(code[0], code[1], code[2], code[3]);
    }
    if (lane == 0) y[at.scale_at] = live ? most / 127.0f : all_finite ? 0.0f : NAN;
}

__global__ void __launch_bounds__(kThreads)
    norm_kernel(Mat x, const float* weight, const float* bias, bool center, float eps, Mat y,
                CodeRow codes) {
    const int row = blockIdx.x * kWarps + warp_index(), lane = lane_index();
    if (row >= x.rows) return;
    const float* from = x.data + row * x.ld;
    float mean = 0.0f;
    if (center) {
        float sum = 0.0f;
        for (int c = lane; c < x.cols; c += 32) sum += from[c];
        mean = sum_over<>(sum) / static_cast<float>(x.cols);
    }
    float squares = 0.0f;
    for (int c = lane; c < x.cols; c += 32) {
        const float d = from[c] - mean;
        squares = fmaf(d, d, squares);
    }
    const float factor = 1.0f / sqrtf(sum_over<>(squares) / static_cast<float>(x.cols) + eps);
    const auto value = [&](int c) {
        const float v = (from[c] - mean) * factor * weight[c];
        return bias ? v + bias[c] : v;
    };
    if (y.storage == Storage::i8)
        put_codes(y.data + row * y.ld, x.cols, codes, value);
    else
        for (int c = lane; c < x.cols; c += 32) put(y, row, c, value(c));
}

__global__ void __launch_bounds__(kThreads) quantize_kernel(Mat x, Mat y, CodeRow codes) {
    const int row = blockIdx.x * kWarps + warp_index();
    if (row >= x.rows) return;
    put_codes(y.data + row * y.ld, x.cols, codes, [&](int c) { return get(x, row, c); });
}

__global__ void __launch_bounds__(kThreads) copy_kernel(Mat x, float scale, Mat y, int padded) {
    const int row = blockIdx.x;
    for (int c = threadIdx.x; c < padded; c += kThreads)
        put(y, row, c, c < x.cols ? get(x, row, c) * scale : 0.0f);
}

__global__ void __launch_bounds__(kThreads)
    pixel_shuffle_kernel(Mat x, int side, int scale, Mat out) {
    const int row = blockIdx.x, across = side / scale;
    for (int i = threadIdx.x; i < out.cols; i += kThreads) {
        const int cell = i / x.cols, dy = cell / scale, dx = cell % scale;
        const int from = (row / across * scale + dy) * side + row % across * scale + dx;
        put(out, row, i, get(x, from, i % x.cols));
    }
}

__global__ void __launch_bounds__(kThreads)
    flow_update_kernel(Mat x, Mat v, Mat schedule, const int* step, Pull pull, Mat last) {
    const int row = blockIdx.x;
    const float* now = schedule.data + *step * schedule.ld;
    const float dt = now[0], t = now[1], gain = now[2];
    const float of_this = last.data ? now[3] : 1.0f, of_last = last.data ? now[4] : 0.0f;
    for (int c = threadIdx.x; c < x.cols; c += kThreads) {
        float* at = x.data + row * x.ld + c;
        float velocity = v.data[row * v.ld + c];
        if (pull.previous.data) {
            const float clean = *at - t * velocity;
            const float error = pull.previous.data[row * pull.previous.ld + c] - clean;
            velocity -= gain * (error * pull.weight[row]);
        }
        if (last.data) {
            float* kept = last.data + row * last.ld + c;
            const float joined = of_this * velocity + of_last * *kept;
            *kept = velocity;
            velocity = joined;
        }
        *at += dt * velocity;
    }
}

__global__ void advance_kernel(int* number) { ++*number; }

}  // namespace

cudaError_t norm(Mat x, const float* weight, const float* bias, bool center, float eps, Mat y,
                 cudaStream_t stream) {
    return launch(norm_kernel, a_warp_a_row(x.rows, stream), x, weight, bias, center, eps, y,
                  code_row(x.cols));
}

cudaError_t quantize_rows(Mat x, Mat y, cudaStream_t stream) {
    return launch(quantize_kernel, a_warp_a_row(x.rows, stream), x, y, code_row(x.cols));
}

cudaError_t copy_rows(Mat x, float scale, Mat y, int padded, cudaStream_t stream) {
    return launch(copy_kernel, a_block_a_row(x.rows, stream), x, scale, y, padded);
}

cudaError_t pixel_shuffle(Mat x, int side, int scale, Mat out, cudaStream_t stream) {
    return launch(pixel_shuffle_kernel, a_block_a_row(out.rows, stream), x, side, scale, out);
}

cudaError_t flow_update(Mat x, Mat v, Mat schedule, const int* step, const Pull& pull, Mat last,
                        cudaStream_t stream) {
    return launch(flow_update_kernel, a_block_a_row(x.rows, stream), x, v, schedule, step, pull,
                  last);
}

cudaError_t advance(int* number, cudaStream_t stream) {
    Launch how;
    how.grid = how.block = dim3(1);
    how.stream = stream;
    return launch(advance_kernel, how, number);
}

}  // namespace smolvla::cuda

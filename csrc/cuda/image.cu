// Frames to patches. The letterbox is LeRobot's resize_with_pad, as cpu/image.h explains it.
#include "cuda/epilogue.cuh"
#include "ops/letterbox.h"

namespace smolvla::cuda {
namespace {

struct Box {
    const void* frame;
    bool is_u8;
    int frame_height, frame_width, height, width, inner_height, inner_width;
    float* pixels;
};

// The two neighbours of an output pixel and the weight of the second.
struct Tap {
    int first, second;
    float weight;
};
__device__ __forceinline__ Tap tap(int out_index, int in_size, int out_size) {
    const float scale = static_cast<float>(in_size) / static_cast<float>(out_size);
    const float at = fmaxf(0.0f, (static_cast<float>(out_index) + 0.5f) * scale - 0.5f);
    const int first = min(static_cast<int>(at), in_size - 1);
    return {first, min(first + 1, in_size - 1), at - static_cast<float>(first)};
}

__device__ __forceinline__ float unit(const Box& b, int y, int x, int channel) {
    const size_t at = (size_t(y) * b.frame_width + x) * 3 + channel;
    return b.is_u8 ? static_cast<float>(static_cast<const uint8_t*>(b.frame)[at]) / 255.0f
                   : static_cast<const float*>(b.frame)[at];
}

__global__ void __launch_bounds__(128) letterbox_kernel(Box b) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
    if (x >= b.width) return;
    const int top = b.height - b.inner_height, left = b.width - b.inner_width;
    const size_t plane = size_t(b.height) * b.width;
    float* to = b.pixels + size_t(y) * b.width + x;
    if (y < top || x < left) {
        for (int c = 0; c < 3; ++c) to[c * plane] = -1.0f;
        return;
    }
    const Tap v = tap(y - top, b.frame_height, b.inner_height);
    const Tap h = tap(x - left, b.frame_width, b.inner_width);
    for (int c = 0; c < 3; ++c) {
        const float upper = (1.0f - h.weight) * unit(b, v.first, h.first, c) +
                            h.weight * unit(b, v.first, h.second, c);
        const float lower = (1.0f - h.weight) * unit(b, v.second, h.first, c) +
                            h.weight * unit(b, v.second, h.second, c);
        to[c * plane] = ((1.0f - v.weight) * upper + v.weight * lower) * 2.0f - 1.0f;
    }
}

__global__ void __launch_bounds__(128) patchify_kernel(const float* pixels, int height, int width,
                                                       int patch, const int* ids, Mat rows) {
    const int row = blockIdx.x, id = ids ? ids[row] : row, across = width / patch;
    const int y0 = id / across * patch, x0 = id % across * patch;
    for (int i = threadIdx.x; i < rows.cols; i += blockDim.x) {
        const int c = i / (patch * patch), y = i / patch % patch, x = i % patch;
        put(rows, row, i, pixels[(size_t(c) * height + y0 + y) * width + x0 + x]);
    }
}

}  // namespace

cudaError_t letterbox(const Frame& frame, float* pixels, int height, int width,
                      cudaStream_t stream) {
    const Inner inner = letterbox_inner(frame, height, width);
    const Box b{frame.data, frame.is_u8,  frame.height, frame.width, height,
                width,      inner.height, inner.width,  pixels};
    Launch how;
    how.grid = dim3((width + 127) / 128, height);
    how.block = dim3(128);
    how.stream = stream;
    return launch(letterbox_kernel, how, b);
}

cudaError_t patchify(const float* pixels, int height, int width, int patch, const int* ids,
                     Mat rows, cudaStream_t stream) {
    Launch how;
    how.grid = dim3(rows.rows);
    how.block = dim3(128);
    how.stream = stream;
    return launch(patchify_kernel, how, pixels, height, width, patch, ids, rows);
}

}  // namespace smolvla::cuda

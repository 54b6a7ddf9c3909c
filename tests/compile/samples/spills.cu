// For the gate's own tests: 256 sums a thread and room for 32 registers.
#include "cuda/ptx.h"

namespace smolvla::cuda {

__global__ void __launch_bounds__(1024, 2)
    sample(const float* x, const float* w, float* y, int depth) {
    float sums[256] = {};
    for (int k = 0; k < depth; ++k)
#pragma unroll
        for (int i = 0; i < 256; ++i) sums[i] += x[k * 1024 + threadIdx.x] * w[k * 256 + i];
#pragma unroll
    for (int i = 0; i < 256; ++i) y[i * 1024 + threadIdx.x] = sums[i];
}

}  // namespace smolvla::cuda

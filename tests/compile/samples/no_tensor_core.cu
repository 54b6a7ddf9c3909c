// For the gate's own tests: the product of good.cu with ordinary arithmetic.
#include "cuda/ptx.h"

namespace smolvla::cuda {

__global__ void __launch_bounds__(32)
    sample(const __nv_bfloat16* x, const __nv_bfloat16* w, float* y, int depth) {
    const int l = lane_index();
    for (int i = 0; i < 4; ++i) {
        float sum = 0.0f;
        const int row = l / 2, column = l % 2 * 4 + i;
        for (int k = 0; k < depth; ++k)
            sum += __bfloat162float(x[row * depth + k]) * __bfloat162float(w[column * depth + k]);
        y[row * 8 + column] = sum;
    }
}

}  // namespace smolvla::cuda

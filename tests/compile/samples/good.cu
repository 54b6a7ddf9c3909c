// For the gate's own tests: a kernel as it should be. 16 x 8 of y = x w^T, one warp, through shared
// memory.
#include "cuda/ptx.h"

namespace smolvla::cuda {

__global__ void __launch_bounds__(32)
    sample(const __nv_bfloat16* x, const __nv_bfloat16* w, float* y, int depth) {
    __nv_bfloat16* tile = shared_memory<__nv_bfloat16>();
    const int l = lane_index(), g = l / 4, t = l % 4;
    float sum[4] = {};
    for (int k = 0; k < depth; k += 16) {
        copy_16(shared_address(tile + 8 * l), x + l / 2 * depth + k + l % 2 * 8);
        if (l < 16) copy_16(shared_address(tile + 256 + 8 * l), w + l / 2 * depth + k + l % 2 * 8);
        copy_commit();
        copy_wait<0>();
        __syncwarp();
        uint32_t a[4], b[4];  // of w twice the same
        ldmatrix_x4(a, shared_address(tile + l % 16 * 16 + l / 16 * 8));
        ldmatrix_x4(b, shared_address(tile + 256 + l % 8 * 16 + l / 8 % 2 * 8));
        mma_bf16(sum, a, b[0], b[1]);
        __syncwarp();
    }
    for (int i = 0; i < 4; ++i) y[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

}  // namespace smolvla::cuda

// Linear layers in bfloat16 with float32 sums (m16n8k16).
#include "cuda/gemm_mma.cuh"

namespace smolvla::cuda {
namespace {

// Blocks of 128 x 128: 8 warps of 64 x 32. Of 64 x 64 and 64 x 32: 4 warps of 32 x 32 and 32 x 16.
__global__ void __launch_bounds__(256, 2) gemm_bf16_128x128(Operands o, Epilogue e) {
    gemm_tile<Bf16Operand, 128, 128, 2, 4>(o, e);
}
__global__ void __launch_bounds__(128) gemm_bf16_64x64(Operands o, Epilogue e) {
    gemm_tile<Bf16Operand, 64, 64, 2, 2>(o, e);
}
__global__ void __launch_bounds__(128) gemm_bf16_64x32(Operands o, Epilogue e) {
    gemm_tile<Bf16Operand, 64, 32, 2, 2>(o, e);
}

}  // namespace

cudaError_t prepare_gemm_bf16() {
    return allow_shared_memory(gemm_bf16_128x128, shared_bytes(128, 128));
}

cudaError_t gemm_bf16(Mat x, const void* w, int w_ld, int columns, int depth, const Epilogue& e,
                      int processors, cudaStream_t stream) {
    const Operands o{reinterpret_cast<const char*>(x.data),
                     x.ld * sizeof(float),
                     static_cast<const char*>(w),
                     w_ld * sizeof(__nv_bfloat16),
                     x.rows,
                     columns,
                     depth * int(sizeof(__nv_bfloat16))};
    switch (tile_for(x.rows, columns, processors)) {
        case TileSize::large: return launch_tile<128, 128>(gemm_bf16_128x128, 256, o, e, stream);
        case TileSize::middle: return launch_tile<64, 64>(gemm_bf16_64x64, 128, o, e, stream);
        default: return launch_tile<64, 32>(gemm_bf16_64x32, 128, o, e, stream);
    }
}

}  // namespace smolvla::cuda

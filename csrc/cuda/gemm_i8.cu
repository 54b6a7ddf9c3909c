// Linear layers of int8 weights and rows of int8 (m16n8k32). The sums are whole numbers: they equal
// the CPU's, whatever the order. A 32-bit sum cannot overflow: 65,536 products, the most that a row
// may have, of 127 x 127 are half of 2^31.
#include "cuda/gemm_mma.cuh"

namespace smolvla::cuda {
namespace {

__global__ void __launch_bounds__(256, 2) gemm_i8_128x128(Operands o, Epilogue e) {
    gemm_tile<S8Operand, 128, 128, 2, 4>(o, e);
}
__global__ void __launch_bounds__(128) gemm_i8_64x64(Operands o, Epilogue e) {
    gemm_tile<S8Operand, 64, 64, 2, 2>(o, e);
}
__global__ void __launch_bounds__(128) gemm_i8_64x32(Operands o, Epilogue e) {
    gemm_tile<S8Operand, 64, 32, 2, 2>(o, e);
}

}  // namespace

cudaError_t prepare_gemm_i8() {
    return allow_shared_memory(gemm_i8_128x128, shared_bytes(128, 128));
}

cudaError_t gemm_i8(Mat x, const void* w, int w_ld, const float* w_scale, int columns, int depth,
                    const Epilogue& e, int processors, cudaStream_t stream) {
    const Operands o{reinterpret_cast<const char*>(x.data),
                     x.ld * sizeof(float),
                     static_cast<const char*>(w),
                     size_t(w_ld),
                     x.rows,
                     columns,
                     depth,
                     w_scale,
                     scale_at(code_words(depth))};
    switch (tile_for(x.rows, columns, processors)) {
        case TileSize::large: return launch_tile<128, 128>(gemm_i8_128x128, 256, o, e, stream);
        case TileSize::middle: return launch_tile<64, 64>(gemm_i8_64x64, 128, o, e, stream);
        default: return launch_tile<64, 32>(gemm_i8_64x32, 128, o, e, stream);
    }
}

}  // namespace smolvla::cuda

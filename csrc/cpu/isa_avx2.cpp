// AVX2 and FMA: the kernels of kernels.inl over two ymm registers. A tile of 6 rows takes a panel
// in two halves of 16 columns: 12 accumulators, 2 weight vectors and 1 broadcast are 15 of the 16
// registers (the mask that widens the upper bfloat16 is the 16th). A step of k costs 12 fma on two
// pipes (6 cycles) and 8 loads on two ports (4 cycles). Products of codes take 4 rows: each needs
// the sign, the sums of 16 bits and the ones beside its 8 sums and 2 weight vectors.
#include <utility>

#include "cpu/isa.h"
#include "cpu/target.h"

#if defined(__x86_64__)
#include <immintrin.h>

SMOLVLA_TARGET_BEGIN("avx2,fma")

namespace smolvla::cpu::avx2 {
#include "cpu/simd/avx2.h"
//
#include "cpu/simd/dot_avx2.h"

#include "cpu/kernels.inl"
//
#include "cpu/kernels/dot.inl"

static const GemmKernels gemm_f32 = gemm_table<PanelF32, 6, 1>();
static const GemmKernels gemm_bf16 = gemm_table<PanelBf16, 6, 1>();
static const DotKernels dot8 = dot_table<Codes8, 4, 1>();
static const DotKernels dot4 = dot_table<Codes4, 4, 1>();
const Kernels kernels = with_codes(every_kernel<6>("avx2", gemm_f32, gemm_bf16), dot8, dot4);
}  // namespace smolvla::cpu::avx2

SMOLVLA_TARGET_END
#endif

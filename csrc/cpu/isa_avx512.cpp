// AVX-512 (F, BW): the kernels of kernels.inl over one zmm register.
#include <utility>

#include "cpu/isa.h"
#include "cpu/target.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if !defined(__clang__)
// GCC 12 warns of its own _mm512_undefined_ps() (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

SMOLVLA_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")

namespace smolvla::cpu::avx512 {
#include "cpu/simd/avx512.h"

#include "cpu/kernels.inl"

static const GemmKernels gemm_f32 = gemm_table<PanelF32, 14, 2>();
static const GemmKernels gemm_bf16 = gemm_table<PanelBf16, 14, 2>();
const Kernels kernels = every_kernel<24>("avx512", gemm_f32, gemm_bf16);
}  // namespace smolvla::cpu::avx512

SMOLVLA_TARGET_END
#endif

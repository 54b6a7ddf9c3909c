// The reference: plain C++, in every build, on every CPU. It is compiled a second time with the FMA
// instruction, because without it each fma() is a call into libm; the bits are the same either way
// (fma is exactly rounded by definition), only the time differs.
#include <utility>

#include "cpu/isa.h"
#include "cpu/target.h"

namespace smolvla::cpu::scalar {
#include "cpu/simd/scalar.h"

#include "cpu/kernels.inl"

static const GemmKernels gemm_f32 = gemm_table<PanelF32, 4, 2>();
static const GemmKernels gemm_bf16 = gemm_table<PanelBf16, 4, 2>();
const Kernels kernels = every_kernel<8>("scalar", gemm_f32, gemm_bf16);
}  // namespace smolvla::cpu::scalar

#if defined(__x86_64__)
SMOLVLA_TARGET_BEGIN("fma")

namespace smolvla::cpu::scalar_fma {
#include "cpu/simd/scalar.h"

#include "cpu/kernels.inl"

static const GemmKernels gemm_f32 = gemm_table<PanelF32, 4, 2>();
static const GemmKernels gemm_bf16 = gemm_table<PanelBf16, 4, 2>();
const Kernels kernels = every_kernel<8>("scalar", gemm_f32, gemm_bf16);
}  // namespace smolvla::cpu::scalar_fma

SMOLVLA_TARGET_END
#endif

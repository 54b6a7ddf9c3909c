// The reference: plain C++, in every build, on every CPU. It is compiled a second time with the FMA
// instruction, because without it each fma() is a call into libm; the bits are the same either way
// (fma is exactly rounded by definition), only the time differs.
#include <utility>

#include "cpu/isa.h"
#include "cpu/target.h"

namespace smolvla::cpu::scalar {
#include "cpu/simd/scalar.h"
//
#include "cpu/simd/dot_scalar.h"

#include "cpu/kernels.inl"
//
#include "cpu/kernels/dot.inl"

static const GemmKernels gemm_f32 = gemm_table<PanelF32, 4, 2>();
static const GemmKernels gemm_bf16 = gemm_table<PanelBf16, 4, 2>();
static const DotKernels dot8 = dot_table<Codes8, 4, 2>();
static const DotKernels dot4 = dot_table<Codes4, 4, 2>();
const Kernels kernels = with_codes(every_kernel<8>("scalar", gemm_f32, gemm_bf16), dot8, dot4);
}  // namespace smolvla::cpu::scalar

#if defined(__x86_64__)
SMOLVLA_TARGET_BEGIN("fma")

namespace smolvla::cpu::scalar_fma {
#include "cpu/simd/scalar.h"
//
#include "cpu/simd/dot_scalar.h"

#include "cpu/kernels.inl"
//
#include "cpu/kernels/dot.inl"

static const GemmKernels gemm_f32 = gemm_table<PanelF32, 4, 2>();
static const GemmKernels gemm_bf16 = gemm_table<PanelBf16, 4, 2>();
static const DotKernels dot8 = dot_table<Codes8, 4, 2>();
static const DotKernels dot4 = dot_table<Codes4, 4, 2>();
const Kernels kernels = with_codes(every_kernel<8>("scalar", gemm_f32, gemm_bf16), dot8, dot4);
}  // namespace smolvla::cpu::scalar_fma

SMOLVLA_TARGET_END
#endif

// AArch64 with nothing beyond its baseline, ASIMD: the kernels of kernels.inl over four q
// registers. A tile of 6 rows takes a panel in two halves of 16 columns: 24 accumulators, 4 weight
// vectors and 1 or 2 broadcasts are 30 of the 32 registers. A step of k costs 24 fma on two pipes
// (12 cycles) and 8 loads (6 broadcasts, 2 pairs of weights), 8 cycles on the one port of a
// Cortex-A72.
#include <utility>

#include "cpu/isa.h"

#if defined(__aarch64__)
#include <arm_neon.h>

namespace smolvla::cpu::neon {
#include "cpu/simd/neon.h"
//
#include "cpu/simd/dot_neon.h"

#include "cpu/kernels.inl"
//
#include "cpu/kernels/dot.inl"

static const GemmKernels gemm_f32 = gemm_table<PanelF32, 6, 1>();
static const GemmKernels gemm_bf16 = gemm_table<PanelBf16, 6, 1>();
static const DotKernels dot8 = dot_table<Codes8, 6, 1>();
static const DotKernels dot4 = dot_table<Codes4, 6, 1>();
const Kernels kernels = with_codes(every_kernel<7>("neon", gemm_f32, gemm_bf16), dot8, dot4);
}  // namespace smolvla::cpu::neon
#endif

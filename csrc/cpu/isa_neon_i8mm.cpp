// AArch64 with FEAT_I8MM (Neoverse V1 and N2, and later, so Jetson Thor and Graviton 3): products
// of integers. Everything else comes from the sets below.
//
// Roofline of the tile: 6 rows take a panel in two halves of 16 columns: 24 sums, 3 pairs of rows
// and a weight vector are 28 of 32 registers; a step of eight k costs 24 smmla (of 32 products
// each) and 14 loads.
#include <utility>

#include "cpu/isa.h"
#include "cpu/target.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#if defined(__clang__)
SMOLVLA_TARGET_BEGIN("i8mm")
#else
SMOLVLA_TARGET_BEGIN("arch=armv8.2-a+i8mm")
#endif

namespace smolvla::cpu::neon_i8mm {
#include "cpu/simd/neon.h"
//
#include "cpu/simd/dot_neon_i8mm.h"
//
#include "cpu/kernels/dot_pairs.inl"

static const DotKernels dot8 = dot_table<Codes8, 6, 1>();
static const DotKernels dot4 = dot_table<Codes4, 6, 1>();

static constexpr Kernels products_of_codes() {
    Kernels k{};
    k.isa = "neon_i8mm";
    k.dot8 = &dot8;
    k.dot4 = &dot4;
    return k;
}
const Kernels kernels = products_of_codes();
}  // namespace smolvla::cpu::neon_i8mm

SMOLVLA_TARGET_END
#endif

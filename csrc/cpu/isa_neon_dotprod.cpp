// AArch64 with FEAT_DotProd (Cortex-A76 and A78, Neoverse N1, and later): products of integers.
// Everything else comes from neon.
#include <utility>

#include "cpu/isa.h"
#include "cpu/target.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#if defined(__clang__)
SMOLVLA_TARGET_BEGIN("dotprod")
#else
SMOLVLA_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif

namespace smolvla::cpu::neon_dotprod {
#include "cpu/simd/neon.h"
//
#define SMOLVLA_SDOT
#include "cpu/simd/dot_neon.h"
#undef SMOLVLA_SDOT
//
#include "cpu/kernels/dot.inl"

static const DotKernels dot8 = dot_table<Codes8, 6, 1>();
static const DotKernels dot4 = dot_table<Codes4, 6, 1>();

static constexpr Kernels products_of_codes() {
    Kernels k{};
    k.isa = "neon_dotprod";
    k.dot8 = &dot8;
    k.dot4 = &dot4;
    return k;
}
const Kernels kernels = products_of_codes();
}  // namespace smolvla::cpu::neon_dotprod

SMOLVLA_TARGET_END
#endif

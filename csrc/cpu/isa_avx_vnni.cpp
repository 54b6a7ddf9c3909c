// AVX-VNNI (Alder Lake and later, Zen 5): products of integers. Everything else comes from avx2,
// or from AVX-512 where a CPU has both.
//
// Roofline of the tile: as avx2's, 6 rows take a panel in two halves of 16 columns: 12 sums, 2
// weight vectors and 1 broadcast, and for int4 codes the mask, are 16 registers; a step of four k
// costs 12 vpdpbusd on two pipes (6 cycles) and 8 loads on two ports (4 cycles).
#include <utility>

#include "cpu/isa.h"
#include "cpu/target.h"

#if defined(__x86_64__)
#include <immintrin.h>

SMOLVLA_TARGET_BEGIN("avxvnni,avx2,fma")

namespace smolvla::cpu::avx_vnni {
#include "cpu/simd/avx2.h"
//
#define SMOLVLA_VNNI
#include "cpu/simd/dot_avx2.h"
#undef SMOLVLA_VNNI
//
#include "cpu/kernels/dot.inl"

static const DotKernels dot8 = dot_table<Codes8, 6, 1>();
static const DotKernels dot4 = dot_table<Codes4, 6, 1>();

static constexpr Kernels products_of_codes() {
    Kernels k{};
    k.isa = "avx_vnni";
    k.dot8 = &dot8;
    k.dot4 = &dot4;
    return k;
}
const Kernels kernels = products_of_codes();
}  // namespace smolvla::cpu::avx_vnni

SMOLVLA_TARGET_END
#endif

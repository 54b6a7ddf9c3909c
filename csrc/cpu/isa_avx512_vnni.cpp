// AVX-512 VNNI (Cascade Lake, Ice Lake, Zen 4 and later): products of integers. Everything else
// comes from avx512.
//
// Roofline of the tile: 14 x 32 outputs keep 28 sums, 2 weight vectors and 1 broadcast in 31 of 32
// registers (int4 codes: 13 rows, for the mask); a step of four k costs 28 vpdpbusd and 16 loads.
#include <utility>

#include "cpu/isa.h"
#include "cpu/target.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // see isa_avx512.cpp
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

SMOLVLA_TARGET_BEGIN("avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")

namespace smolvla::cpu::avx512_vnni {
#include "cpu/simd/avx512.h"
//
#include "cpu/simd/dot_avx512_vnni.h"
//
#include "cpu/kernels/dot.inl"

static const DotKernels dot8 = dot_table<Codes8, 14, 2>();
static const DotKernels dot4 = dot_table<Codes4, 13, 2>();

static constexpr Kernels products_of_codes() {
    Kernels k{};
    k.isa = "avx512_vnni";
    k.dot8 = &dot8;
    k.dot4 = &dot4;
    return k;
}
const Kernels kernels = products_of_codes();
}  // namespace smolvla::cpu::avx512_vnni

SMOLVLA_TARGET_END
#endif

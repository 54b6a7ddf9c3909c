#include "cpu/int8_peak.h"

#include "cpu/isa.h"
#include "cpu/target.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // see isa_avx512.cpp
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

SMOLVLA_TARGET_BEGIN("avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")

namespace smolvla::cpu {
namespace {

// The intrinsic makes GCC 12 copy and spill sums, which halves the rate of this loop.
inline void add_products(__m512i& sum, __m512i a, __m512i b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

double vpdpbusd_chain(long iterations) {
    // Every loop over the chains is unrolled: they would be stored in each iteration otherwise.
    constexpr int kChains = 24;
    __m512i chain[kChains];
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) chain[i] = _mm512_set1_epi32(i);
    const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
    for (long n = 0; n < iterations; ++n) {
#pragma GCC unroll 24
        for (int i = 0; i < kChains; ++i) add_products(chain[i], a, b);
    }
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) sum = _mm512_add_epi32(sum, chain[i]);
    // Uses the result, so that the loop cannot be dropped. Chain i ends at i - 60 n in every lane
    // (modulo 2^32), so the sum of the 16 lanes is even.
    return _mm512_reduce_add_epi32(sum) % 2 == 0
               ? 2.0 * 64 * kChains * static_cast<double>(iterations)
               : 0.0;
}

}  // namespace
}  // namespace smolvla::cpu

SMOLVLA_TARGET_END
#endif

namespace smolvla::cpu {

Int8Chain int8_chain() {
#if defined(__x86_64__)
    const CpuFeatures f = detect_features();
    if (f.avx512 && f.avx512_vnni) return vpdpbusd_chain;
#endif
    return nullptr;
}

}  // namespace smolvla::cpu

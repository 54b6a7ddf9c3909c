// AVX-512 BF16 (Cooper Lake, Sapphire Rapids, Zen 4 and later): products of bfloat16 pairs, and
// rounding to bfloat16 in one instruction. Products of float32 come from avx512.
//
// vdpbf16ps adds, in every 32-bit lane, the product of the high halves and then that of the low
// halves, each with one rounding to nearest even (subnormals count as zero). With the even column
// in the high half that is the float32 chain over the same values in order of k, so every ISA that
// computes on rounded float32 gives the same bits.
#include <utility>

#include "cpu/isa.h"
#include "cpu/target.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // see isa_avx512.cpp
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

SMOLVLA_TARGET_BEGIN("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")

namespace smolvla::cpu::avx512_bf16 {
#define SMOLVLA_ROUND_BY_INSTRUCTION
#include "cpu/simd/avx512.h"
#undef SMOLVLA_ROUND_BY_INSTRUCTION

#include "cpu/kernels.inl"

struct PanelWords {  // [words][32] pairs of bfloat16
    static constexpr int kRowBytes = kPanel * 4;
    static constexpr int kChain = kDepthBlock / 2;
    static F32x16 load(const char* row, int half) { return PanelF32::load(row, half); }
    static F32x16 add_product(F32x16 a, F32x16 w, F32x16 sum) {
        return {_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)w.v)};
    }
};

static const GemmKernels gemm_words = gemm_table<PanelWords, 14, 2>();

static constexpr Kernels all_but_float32_products() {
    Kernels k = every_kernel_but_gemm<24>("avx512_bf16");
    k.gemm_words = &gemm_words;
    k.words_chain = product_chain<PanelWords, 24>;
    return k;
}
const Kernels kernels = all_but_float32_products();
}  // namespace smolvla::cpu::avx512_bf16

SMOLVLA_TARGET_END
#endif

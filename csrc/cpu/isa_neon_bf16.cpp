// AArch64 with FEAT_BF16 (Neoverse V1 and N2, Cortex-A510 and A710, and later): products of
// bfloat16 pairs. Everything else comes from neon.
//
// BFMLALT and BFMLALB multiply the upper and the lower halves of 32-bit lanes and add each product
// with one rounding, as FMLA would after widening. The even column is in the upper half, so upper
// then lower is the float32 chain over the same values in order of k: the bits of every other ISA.
//
// BFDOT and BFMMLA do two and four times as many products in one instruction, but round the sum of
// a pair to odd, and again after adding it. A policy would give other bytes on this CPU than on any
// other, so they are not used (docs/limits.md).
#include <utility>

#include "cpu/isa.h"
#include "cpu/target.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#if defined(__clang__)
SMOLVLA_TARGET_BEGIN("bf16")
#else
SMOLVLA_TARGET_BEGIN("arch=armv8.2-a+bf16")
#endif

namespace smolvla::cpu::neon_bf16 {
#include "cpu/simd/neon.h"

#include "cpu/kernels.inl"

struct PanelWords {  // [words][32] pairs of bfloat16
    static constexpr int kRowBytes = kPanel * 4;
    static constexpr int kChain = kDepthBlock / 2;
    static F32x16 load(const char* row, int half) { return PanelF32::load(row, half); }
    // By hand: clang 14 has the intrinsics only in files that are built for FEAT_BF16 as a whole.
    // The forms that take one element save spreading it; clang takes no scalar in registers 0..15.
    static F32x16 add_product(F32x16 a, F32x16 w, F32x16 sum) {
#if defined(__clang__)
        const float32x4_t word = a.v[0];
#else
        const float word = vgetq_lane_f32(a.v[0], 0);
#endif
        for (int i = 0; i < 4; ++i)
            __asm__("bfmlalt %0.4s, %1.8h, %2.h[1]" : "+w"(sum.v[i]) : "w"(w.v[i]), "x"(word));
        for (int i = 0; i < 4; ++i)
            __asm__("bfmlalb %0.4s, %1.8h, %2.h[0]" : "+w"(sum.v[i]) : "w"(w.v[i]), "x"(word));
        return sum;
    }
};

static const GemmKernels gemm_words = gemm_table<PanelWords, 6, 1>();

static constexpr Kernels products_of_words() {
    Kernels k{};
    k.isa = "neon_bf16";
    k.gemm_words = &gemm_words;
    k.words_chain = product_chain<PanelWords, 7>;
    return k;
}
const Kernels kernels = products_of_words();
}  // namespace smolvla::cpu::neon_bf16

SMOLVLA_TARGET_END
#endif

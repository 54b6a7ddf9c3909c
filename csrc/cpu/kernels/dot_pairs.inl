// Integer products by matrix instructions that take two rows at a time: dot.inl's tile for them.
// VECTORS is 1: sixteen columns at a time. An odd last row is multiplied twice.

template <int ROWS, class Weights>
void dot_half(const float* x, ptrdiff_t ldx, const CodePanel& panel, int half, float* out,
              ptrdiff_t ldo, const char* ahead) {
    constexpr int kPairs = (ROWS + 1) / 2, kWords = 2;  // of a run of eight k
    const float* first[kPairs];
    const float* second[kPairs];
    for (int p = 0; p < kPairs; ++p) {
        first[p] = x + 2 * p * ldx;
        second[p] = 2 * p + 1 < ROWS ? first[p] + ldx : first[p];
    }
    const char* run = static_cast<const char*>(panel.codes);
    const float* scales = panel.scales + 16 * half;
    for (int begin = 0; begin < panel.words; begin += panel.group_words, scales += kPanel) {
        const int end =
            panel.words - begin < panel.group_words ? panel.words : begin + panel.group_words;
        int32x4_t sum[kPairs][8];
#pragma GCC unroll 8
        for (int p = 0; p < kPairs; ++p)
            for (int i = 0; i < 8; ++i) sum[p][i] = vdupq_n_s32(0);
        for (int k = begin; k < end; k += kWords) {
            int8x16_t rows[kPairs];
#pragma GCC unroll 8
            for (int p = 0; p < kPairs; ++p) rows[p] = two_rows(first[p] + k, second[p] + k);
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                const int8x16_t w = Weights::load(run, half, i);
#pragma GCC unroll 8
                for (int p = 0; p < kPairs; ++p) sum[p][i] = add_products(rows[p], w, sum[p][i]);
            }
            run += Weights::kRunBytes;
            if (ahead) {
                __builtin_prefetch(ahead, 0, 2);
                __builtin_prefetch(ahead + 64, 0, 2);
                ahead += Weights::kRunBytes;
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            F32x16 whole;
            for (int i = 0; i < 4; ++i) {
                const int64x2_t a = vreinterpretq_s64_s32(sum[r / 2][2 * i]);
                const int64x2_t b = vreinterpretq_s64_s32(sum[r / 2][2 * i + 1]);
                const int64x2_t columns = r % 2 == 0 ? vzip1q_s64(a, b) : vzip2q_s64(a, b);
                whole.v[i] = vcvtq_f32_s32(vreinterpretq_s32_s64(columns));
            }
            float* to = out + r * ldo + 16 * half;
            const F32x16 scale = F32x16::load(scales);
            if (begin > 0)
                fma(whole, scale, F32x16::load(to)).store(to);
            else
                (whole * scale).store(to);
        }
    }
}

template <int ROWS, int VECTORS, class Weights>
void dot_tile(const float* x, ptrdiff_t ldx, const CodePanel& panel, float* out, ptrdiff_t ldo,
              const void* next) {
    static_assert(VECTORS == 1, "sixteen columns at a time");
    const char* ahead = static_cast<const char*>(next);
    dot_half<ROWS, Weights>(x, ldx, panel, 0, out, ldo, ahead);
    // Of int4 codes the first half has fetched the whole next panel.
    if (ahead) ahead = Weights::kRunBytes > 128 ? ahead + 128 : nullptr;
    dot_half<ROWS, Weights>(x, ldx, panel, 1, out, ldo, ahead);
}

#include "cpu/kernels/dot_table.inl"

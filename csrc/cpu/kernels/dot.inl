// Integer products of a tile of rows with a panel of 32 weight columns, and the rows' integers.
//
// Overflow: the sums are exact modulo 2^32, offset or not, so only the result must fit: a product
// is at most 127 * 127, and kMaxCodes = 65,536 of them are 1.06e9 < 2^31. SmolVLA's longest row has
// 3,072 (12,288 in the connector); ops/codes.cpp refuses more than kMaxCodes.
//
// VECTORS as in gemm.inl. Weights: Codes8 or Codes4 of the ISA's simd/dot_*.h; its kOrder.offset
// is what the bytes that it multiplies have too much.

// The sum of a row's codes in words [begin, end), whole blocks.
inline int32_t sum_of(const float* row, int words, int begin, int end) {
    int32_t sum = 0, block;
    if (begin == 0 && end == words) {
        __builtin_memcpy(&sum, row + total_at(words), sizeof sum);
        return sum;
    }
    for (int b = begin / (kCodeBlock / 4); b < end / (kCodeBlock / 4); ++b) {
        __builtin_memcpy(&block, row + sums_at(words) + b, sizeof block);
        sum += block;
    }
    return sum;
}

template <int ROWS, int VECTORS, class Weights>
void dot_half(const float* x, ptrdiff_t ldx, const CodePanel& panel, int half, float* out,
              ptrdiff_t ldo, const char* ahead) {
    constexpr int kBases = (ROWS + 2) / 3;  // as in gemm_half
    const float* base[kBases];
    for (int g = 0; g < kBases; ++g) base[g] = x + 3 * g * ldx;
    const char* row = static_cast<const char*>(panel.codes);
    const float* scales = panel.scales;
    for (int begin = 0; begin < panel.words; begin += panel.group_words, scales += kPanel) {
        const int end =
            panel.words - begin < panel.group_words ? panel.words : begin + panel.group_words;
        Dots sum[ROWS][VECTORS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            int32_t start = 0;
            if constexpr (Weights::kOrder.offset != 0)
                start = -Weights::kOrder.offset * sum_of(x + r * ldx, panel.words, begin, end);
            for (int v = 0; v < VECTORS; ++v) sum[r][v] = Dots::broadcast(start);
        }
        for (int k = begin; k < end; ++k) {
            typename Weights::Vector w[VECTORS];
            for (int v = 0; v < VECTORS; ++v) w[v] = Weights::load(row, half + v);
            row += Weights::kRowBytes;
            if (ahead) {
                __builtin_prefetch(ahead, 0, 2);
                if (Weights::kRowBytes * VECTORS > 128) __builtin_prefetch(ahead + 64, 0, 2);
                ahead += Weights::kRowBytes;
            }
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                const RowWord a = row_word(base[r / 3] + (r % 3) * ldx);
                for (int v = 0; v < VECTORS; ++v)
                    sum[r][v] = Weights::add_products(w[v], a, sum[r][v]);
            }
#pragma GCC unroll 16
            for (int g = 0; g < kBases; ++g) ++base[g];
        }
        for (int v = 0; v < VECTORS; ++v) {
            const F32x16 scale = F32x16::load(scales + 16 * (half + v));
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                float* to = out + r * ldo + 16 * (half + v);
                const F32x16 whole = sum[r][v].to_float();
                if (begin > 0)
                    fma(whole, scale, F32x16::load(to)).store(to);
                else
                    (whole * scale).store(to);
            }
        }
    }
}

template <int ROWS, int VECTORS, class Weights>
void dot_tile(const float* x, ptrdiff_t ldx, const CodePanel& panel, float* out, ptrdiff_t ldo,
              const void* next) {
    const char* ahead = static_cast<const char*>(next);
    for (int half = 0; half < 2; half += VECTORS) {
        dot_half<ROWS, VECTORS, Weights>(x, ldx, panel, half, out, ldo, ahead);
        if (ahead) ahead = Weights::kRowBytes > 64 ? ahead + 64 : nullptr;
    }
}

#include "cpu/kernels/dot_table.inl"

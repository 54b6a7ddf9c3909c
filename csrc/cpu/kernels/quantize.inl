// Rows of activations to integers with one scale a row.

// Sixteen columns from column c (a multiple of 32) of a row: the even ones, then the odd ones, for
// Storage::bf16; otherwise columns c to c + 15 and c + 16 to c + 31. Missing columns are zero.
struct ColumnPair {
    F32x16 first, second;
};
inline ColumnPair load_columns(const float* row, int c, int columns, Storage from) {
    const int width = columns - c < 32 ? columns - c : 32;
    if (from == Storage::bf16) {
        const F32x16 words = F32x16::load_first(row + c / 2, (width + 1) / 2);
        return {high_halves(words), low_halves(words)};
    }
    const int low = width < 16 ? width : 16;
    return {F32x16::load_first(row + c, low),
            width > 16 ? F32x16::load_first(row + c + 16, width - 16) : F32x16::zero()};
}

inline void quantize_rows(const float* x, ptrdiff_t ldx, int rows, int columns, Storage from,
                          float* y, ptrdiff_t ldy) {
    const int words = code_words(columns);
    for (int r = 0; r < rows; ++r, x += ldx, y += ldy) {
        F32x16 most = F32x16::zero(), bad = F32x16::zero();  // bad: 0, or NaN
        for (int c = 0; c < columns; c += kCodeBlock) {
            const ColumnPair v = load_columns(x, c, columns, from);
            most = max(max(v.first, F32x16::zero() - v.first), most);
            most = max(max(v.second, F32x16::zero() - v.second), most);
            bad = fma(v.first, F32x16::zero(), bad);
            bad = fma(v.second, F32x16::zero(), bad);
        }
        const float largest = lane_max(most), fault = lane_sum(bad);
        // Below 2^-100 the inverse could overflow; such a row is zero.
        const bool live = fault == 0.0f && largest >= 0x1p-100f;
        const F32x16 inverse = F32x16::broadcast(live ? 127.0f / largest : 0.0f);
        int32_t total = 0;
        for (int c = 0, block = 0; c < columns; c += kCodeBlock, ++block) {
            int32_t sum = 0;
            float* to = y + c / 4;
            if (live) {
                const ColumnPair v = load_columns(x, c, columns, from);
                sum = store_codes(nearest(v.first * inverse), nearest(v.second * inverse),
                                  from == Storage::bf16, to);
            } else {
                __builtin_memset(to, 0, kCodeBlock);
            }
            __builtin_memcpy(y + sums_at(words) + block, &sum, sizeof sum);
            total += sum;
        }
        __builtin_memcpy(y + total_at(words), &total, sizeof total);
        y[scale_at(words)] = live ? largest / 127.0f : fault;
    }
}

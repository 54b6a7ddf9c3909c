// How the rows of an activation matrix lie in memory, counted in words of four bytes.
#pragma once

namespace smolvla {

enum class Storage {
    f32,      // a word is a float
    rounded,  // a float that was rounded to the nearest bfloat16 (ties to even)
    // Two columns rounded to bfloat16: the even one in the high half, the odd one in the low half.
    // AVX-512's dot product adds the high product first, so this order makes a bfloat16 dot product
    // the float32 chain over the same rounded values, bit for bit.
    bf16,
    bf16_rows,  // columns rounded to bfloat16, two in a word in their order: what GPUs multiply
    // Rows of integers in [-127, 127] with one scale a row, for weights of integer codes: four
    // columns in a word, the first in the low byte; then the sum of each block of kCodeBlock
    // columns (int32), their total (int32), and the scale (float). Columns up to a whole block
    // are zero.
    i8,
};

constexpr int kCodeBlock = 32;

constexpr int code_words(int columns) {
    return (columns + kCodeBlock - 1) / kCodeBlock * (kCodeBlock / 4);
}
// Where a row of Storage::i8 keeps its block sums, their total and its scale.
constexpr int sums_at(int words) { return words; }
constexpr int total_at(int words) { return words + words / (kCodeBlock / 4); }
constexpr int scale_at(int words) { return total_at(words) + 1; }

// Words that a row of `columns` takes.
constexpr int words_of(int columns, Storage s) {
    return s == Storage::bf16 || s == Storage::bf16_rows ? (columns + 1) / 2
           : s == Storage::i8                            ? scale_at(code_words(columns)) + 1
                                                         : columns;
}

}  // namespace smolvla

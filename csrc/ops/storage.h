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
};

// Words that a row of `columns` takes.
constexpr int words_of(int columns, Storage s) {
    return s == Storage::bf16 ? (columns + 1) / 2 : columns;
}

}  // namespace smolvla

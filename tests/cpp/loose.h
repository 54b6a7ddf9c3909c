// Operands that no kernel may take for granted, and what a result may be.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "ops/ops.h"

namespace smolvla {

constexpr double kEps = 0x1p-24;             // half an ulp of 1: one rounding to float32
constexpr double kEpsBf16 = 0x1p-8;          // one rounding to bfloat16
constexpr double kCoarseExp = 0x1p-16;       // an exponential for a result in bfloat16, doubled
constexpr uint32_t kUntouched = 0x7fc12345;  // a NaN that nobody computes

inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
// To the nearest bfloat16, ties to even, of a normal number; written unlike the kernels do it.
inline float to_bf16(float x) {
    const float below = float_of(bits_of(x) & 0xffff0000u);
    const float above = float_of((bits_of(x) & 0xffff0000u) + 0x10000u);
    const double left = std::fabs(double(x) - below), right = std::fabs(double(above) - x);
    if (left != right) return left < right ? below : above;
    return (bits_of(below) & 0x10000u) == 0 ? below : above;
}

inline std::vector<float> randoms(size_t count, unsigned seed, float scale = 1.0f) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<float> v(count);
    for (float& x : v) x = normal(generator);
    return v;
}

// A matrix whose rows begin 4 bytes beyond any alignment and lie an odd number of words apart. What
// is between the rows is no number, and must still be the same one afterwards.
class LooseMat {
public:
    LooseMat(int rows, int cols, Storage storage = Storage::f32)
        : mat{nullptr, rows, cols, (words_of(cols, storage) + 2) | 1, storage},
          words_(1 + size_t(rows) * mat.ld, float_of(kUntouched)) {
        mat.data = words_.data() + 1;
    }
    LooseMat(int rows, int cols, unsigned seed, Storage storage = Storage::f32, float scale = 1.0f)
        : LooseMat(rows, cols, storage) {
        const std::vector<float> values = randoms(size_t(rows) * cols, seed, scale);
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < cols; ++c) set(r, c, values[size_t(r) * cols + c]);
    }
    LooseMat(const LooseMat&) = delete;
    LooseMat& operator=(const LooseMat&) = delete;

    bool margins_untouched() const {
        const int used = words_of(mat.cols, mat.storage);
        bool same = bits_of(words_[0]) == kUntouched;
        for (int r = 0; r < mat.rows; ++r)
            for (ptrdiff_t w = used; w < mat.ld; ++w)
                same = same && bits_of(mat.row(r)[w]) == kUntouched;
        return same;
    }
    std::vector<float> values() const {
        std::vector<float> all;
        for (int r = 0; r < mat.rows; ++r)
            for (int c = 0; c < mat.cols; ++c) all.push_back(mat.value(r, c));
        return all;
    }

    Mat mat;

private:
    void set(int r, int c, float x) {
        if (mat.storage == Storage::f32) {
            mat.row(r)[c] = x;
        } else if (mat.storage == Storage::rounded) {
            mat.row(r)[c] = to_bf16(x);
        } else {
            float& word = mat.row(r)[c / 2];
            const uint32_t half = bits_of(to_bf16(x));
            word = float_of(c % 2 == 0 ? half : bits_of(word) | half >> 16);
        }
    }
    std::vector<float> words_;
};

// A result in double precision and how far the roundings of a correct kernel can take it away.
struct Bound {
    double value, allowed;

    // After one more rounding to what y is stored as.
    Bound stored(Storage storage) const {
        const double eps = storage == Storage::f32 ? kEps : kEpsBf16;
        return {value, allowed + eps * (std::fabs(value) + allowed)};
    }
};

// A dot product of `depth` products, whose magnitudes sum to `size`: each of the chains of 256 and
// the sum of the chains round once a step.
inline Bound dot(double sum, double size, int depth) {
    return {sum, (std::min(depth, 256) + depth / 256 + 1) * kEps * 1.01 * size};
}

}  // namespace smolvla

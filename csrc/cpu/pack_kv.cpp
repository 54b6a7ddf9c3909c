// Keys and values into their panels (pack.h). Scalar: a thousandth of the attention that reads
// them.
#include <algorithm>
#include <cstring>

#include "cpu/pack.h"

namespace smolvla::cpu {
namespace {

// The bits of the nearest bfloat16 in the upper half, as round_bf16 of simd/scalar.h.
uint32_t round_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const bool subnormal = (bits & 0x7f800000u) == 0;
    const uint32_t sign = bits & 0x80000000u;
    return (nan ? bits | 0x00400000u : subnormal ? sign : rounded) & 0xffff0000u;
}

float as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

}  // namespace

void pack_keys(KvStore& kv, int head, Mat rows, int first) {
    const int dim = kv.head_dim, at = first % kPanel;
    float* panel = kv.key_panel(head, first) + at;
    if (kv.storage == Storage::bf16) {
        for (int d = 0; d < dim; d += 2)
            for (int r = 0; r < rows.rows; ++r) {
                const float* from = rows.row(r) + head * dim + d;
                const uint32_t low = d + 1 < dim ? round_bits(from[1]) >> 16 : 0;
                panel[d / 2 * kPanel + r] = as_float(round_bits(from[0]) | low);
            }
        return;
    }
    const bool round = kv.storage == Storage::rounded;
    for (int d = 0; d < dim; ++d)
        for (int r = 0; r < rows.rows; ++r) {
            const float x = rows.row(r)[head * dim + d];
            panel[d * kPanel + r] = round ? as_float(round_bits(x)) : x;
        }
}

void pack_values(KvStore& kv, int head, Mat rows, int first) {
    const int dim = kv.head_dim;
    for (int c = 0; c < dim; c += kPanel) {
        const int width = std::min(kPanel, dim - c);
        float* panel = kv.value_panel(head, c / kPanel);
        for (int r = 0; r < rows.rows; ++r) {
            const float* from = rows.row(r) + head * dim + c;
            const int position = first + r;
            if (kv.storage == Storage::f32) {
                std::memcpy(panel + size_t(position) * kPanel, from, sizeof(float) * width);
                continue;
            }
            if (kv.storage == Storage::rounded) {
                float* to = panel + size_t(position) * kPanel;
                for (int i = 0; i < width; ++i) to[i] = as_float(round_bits(from[i]));
                continue;
            }
            // The even position of a pair clears the odd one, which follows in the next row, if
            // any.
            float* to = panel + size_t(position / 2) * kPanel;
            if (position % 2 == 0) {
                for (int i = 0; i < width; ++i) to[i] = as_float(round_bits(from[i]));
            } else {
                for (int i = 0; i < width; ++i) {
                    uint32_t word;
                    std::memcpy(&word, &to[i], 4);
                    to[i] = as_float((word & 0xffff0000u) | round_bits(from[i]) >> 16);
                }
            }
        }
    }
}

}  // namespace smolvla::cpu

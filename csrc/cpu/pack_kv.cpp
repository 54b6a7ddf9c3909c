// Keys and values into their panels (pack.h). Scalar: a hundredth of the attention that reads them.
#include <algorithm>
#include <cstring>

#include "cpu/pack.h"

namespace smolvla::cpu {
namespace {

uint32_t as_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

// The bits of the nearest bfloat16 in the upper half, as round_bf16 of simd/scalar.h.
uint32_t round_bits(float x) {
    const uint32_t bits = as_bits(x);
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

// The bfloat16 of two positions, `even` and `odd`, of one column each in the half that is kept.
float paired(uint32_t even, uint32_t odd) { return as_float((even & 0xffff0000u) | odd >> 16); }

// A row of values [width] in pairs of columns into its half of a row of pairs of positions.
// `mask` has the bits of the odd position that an even one keeps.
void put_even(const float* from, int width, float* to, uint32_t mask) {
    for (int i = 0; i + 1 < width; i += 2) {
        const uint32_t word = as_bits(from[i / 2]);
        to[i] = paired(word, (as_bits(to[i]) & mask) << 16);
        to[i + 1] = paired(word << 16, (as_bits(to[i + 1]) & mask) << 16);
    }
}
void put_odd(const float* from, int width, float* to) {
    for (int i = 0; i + 1 < width; i += 2) {
        const uint32_t word = as_bits(from[i / 2]);
        to[i] = paired(as_bits(to[i]), word);
        to[i + 1] = paired(as_bits(to[i + 1]), word << 16);
    }
}

}  // namespace

void pack_keys(PackedKv& kv, int head, Mat rows, int first) {
    const int dim = kv.head_dim, at = first % kPanel;
    float* panel = kv.key_panel(head, first) + at;
    if (rows.storage == Storage::bf16) {
        const ptrdiff_t at_head = head * dim / 2;
        for (int d = 0; d < dim / 2; ++d)
            for (int r = 0; r < rows.rows; ++r) panel[d * kPanel + r] = rows.row(r)[at_head + d];
        return;
    }
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

void pack_values(PackedKv& kv, int head, Mat rows, int first, Neighbour next) {
    const int dim = kv.head_dim;
    const uint32_t mask = next == Neighbour::kept ? 0x0000ffffu : 0;
    for (int c = 0; c < dim; c += kPanel) {
        const int width = std::min(kPanel, dim - c);
        float* panel = kv.value_panel(head, c / kPanel);
        for (int r = 0; r < rows.rows; ++r) {
            const float* from = rows.at(r, head * dim + c);
            const int position = first + r;
            if (rows.storage == Storage::bf16) {
                float* to = panel + size_t(position / 2) * kPanel;
                if (position % 2 == 0)
                    put_even(from, width, to, mask);
                else
                    put_odd(from, width, to);
                continue;
            }
            if (kv.storage == Storage::f32) {
                std::memcpy(panel + size_t(position) * kPanel, from, sizeof(float) * width);
                continue;
            }
            if (kv.storage == Storage::rounded) {
                float* to = panel + size_t(position) * kPanel;
                for (int i = 0; i < width; ++i) to[i] = as_float(round_bits(from[i]));
                continue;
            }
            float* to = panel + size_t(position / 2) * kPanel;
            for (int i = 0; i < width; ++i)
                to[i] = position % 2 == 0 ? as_float(round_bits(from[i]) | (as_bits(to[i]) & mask))
                                          : paired(as_bits(to[i]), round_bits(from[i]));
        }
    }
}

int run_in_panel(const int* positions, int count) {
    int n = 1;
    while (n < count && positions[n] == positions[0] + n && positions[n] % kPanel != 0) ++n;
    return n;
}

}  // namespace smolvla::cpu

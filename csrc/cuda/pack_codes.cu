#include "cuda/pack_codes.h"

#include <cmath>
#include <cstring>
#include <numeric>

#include "cuda/fragments.h"
#include "runtime/tensor_source.h"

namespace smolvla::cuda {
namespace {

void check_scale(float scale, const CodeRows& part, int row, ErrorKind kind) {
    if (!std::isfinite(scale) || scale < 0)
        fail(kind, "%s: expected scales that are finite and not negative, got %g in row %d",
             part.name.c_str(), double{scale}, row);
}

// Rows of the weight as it lies: whole blocks of 8 of each gated part.
int packed_columns(const std::vector<int>& out, bool gated) {
    return gated ? rounded_up(out[0], 8) * 2 : std::accumulate(out.begin(), out.end(), 0);
}

}  // namespace

RowOf row_of(int r, const std::vector<int>& out, bool gated) {
    if (gated) {
        const int row = r / 16 * 8 + r % 8, part = r / 8 % 2;
        return {row < out[0] ? part : -1, row};
    }
    for (size_t part = 0; part < out.size(); ++part) {
        if (r < out[part]) return {int(part), r};
        r -= out[part];
    }
    return {-1, 0};
}

int rounded_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

PackedI8 pack_i8(const std::vector<CodeRows>& parts, const std::vector<int>& out, int in,
                 bool gated, ErrorKind kind) {
    PackedI8 packed{packed_columns(out, gated), rounded_up(in, 16), {}, {}};
    packed.rows.assign(size_t(packed.columns) * packed.ld, 0);
    packed.scales.assign(size_t(packed.columns), 0.0f);
    for (int r = 0; r < packed.columns; ++r) {
        const RowOf from = row_of(r, out, gated);
        if (from.part < 0) continue;
        const CodeRows& part = parts[size_t(from.part)];
        int8_t* to = &packed.rows[size_t(r) * packed.ld];
        std::memcpy(to, part.codes + size_t(from.row) * in, size_t(in));
        for (int k = 0; k < in; ++k)
            if (to[k] < -127)
                fail(kind, "%s: expected codes in [-127, 127], got -128", part.name.c_str());
        const float scale = static_cast<const float*>(part.scales)[from.row];
        check_scale(scale, part, from.row, kind);
        packed.scales[size_t(r)] = scale;
    }
    return packed;
}

PackedI4 pack_i4(const std::vector<CodeRows>& parts, const std::vector<int>& out, int in, int group,
                 bool gated, ErrorKind kind) {
    PackedI4 packed{rounded_up(packed_columns(out, gated), kFragmentRows), {}, {}};
    const int tiles = packed.columns / kFragmentRows, blocks = fragment_blocks(in);
    const int groups = (in + group - 1) / group;
    packed.words.assign(size_t(tiles) * blocks * 128, kZeroCodes);
    packed.scales.assign(size_t(tiles) * groups * 8, 0);
    const size_t pitch = size_t(in + 1) / 2;
    for (int r = 0; r < packed.columns; ++r) {
        const RowOf from = row_of(r, out, gated);
        if (from.part < 0) continue;
        const CodeRows& part = parts[size_t(from.part)];
        const size_t row = size_t(from.row);
        for (int k = 0; k < in; ++k) {
            const uint32_t code = part.codes[row * pitch + k / 2] >> (k % 2 * 4) & 15;
            const CodePlace at = code_place(r, k, blocks);
            packed.words[at.word] ^= (code ^ 8u) << (4 * at.nibble);
        }
        for (int g = 0; g < groups; ++g) {
            const uint16_t bits = static_cast<const uint16_t*>(part.scales)[row * groups + g];
            check_scale(f16_to_f32(bits), part, from.row, kind);
            const ScalePlace at = scale_place(r, g, groups);
            packed.scales[at.word] |= uint32_t(bits) << (16 * at.half);
        }
    }
    return packed;
}

}  // namespace smolvla::cuda

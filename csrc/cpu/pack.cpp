#include "cpu/pack.h"

#include <algorithm>
#include <cstring>

#include "runtime/error.h"

namespace smolvla::cpu {
namespace {

// Where output column `c` of weight number `part` goes in the packed order.
int packed_column(int c, int part, int first_of_part, bool gated) {
    if (!gated) return first_of_part + c;
    return c / 16 * kPanel + part * 16 + c % 16;
}

void put_f32(const Linear& w, int column, const float* row) {
    float* to = reinterpret_cast<float*>(w.data + (column / kPanel) * w.panel_bytes());
    for (int k = 0; k < w.in; ++k) to[size_t(k) * kPanel + column % kPanel] = row[k];
}

void put_bf16(const Linear& w, int column, const uint16_t* row) {
    uint16_t* to = reinterpret_cast<uint16_t*>(w.data + (column / kPanel) * w.panel_bytes());
    if (w.layout == Layout::bf16_words) {
        to += 2 * (column % kPanel);
        for (int k = 0; k < w.in; ++k) to[size_t(k / 2) * 2 * kPanel + (k % 2 == 0)] = row[k];
        return;
    }
    const int lane = column % 16, half = column % kPanel / 16;  // low half of a word: columns 0..15
    for (int k = 0; k < w.in; ++k) to[size_t(k) * kPanel + 2 * lane + half] = row[k];
}

Linear reserve(Arena& arena, int in, int columns, Layout layout, bool gated) {
    Linear w;
    w.in = in;
    w.out = gated ? columns / 2 : columns;
    w.panels = gated ? (w.out + 15) / 16 : (columns + kPanel - 1) / kPanel;
    w.layout = layout;
    w.gated = gated;
    w.data = static_cast<char*>(arena.allocate(w.panels * w.panel_bytes()));
    return w;
}

}  // namespace

Linear pack_linear(Arena& arena, const TensorSource& source,
                   const std::vector<std::string>& weights, const std::vector<std::string>& biases,
                   int in, const std::vector<int>& out, bool gated, Layout bf16_layout) {
    int columns = 0;
    bool bf16 = true;  // mixed parts are widened to float32, which is exact
    for (size_t i = 0; i < weights.size(); ++i) {
        const TensorEntry& e = source.find(weights[i]);
        int64_t count = 1;
        for (int64_t d : e.shape) count *= d;
        // Convolutions are matrices whose inputs are (channel, y, x).
        if (e.shape.empty() || e.shape[0] != out[i] || count != int64_t(out[i]) * in)
            fail(ErrorKind::checkpoint,
                 "tensor %s: expected [%d, %d] elements, got %lld in %lld rows", weights[i].c_str(),
                 out[i], in, static_cast<long long>(count),
                 static_cast<long long>(e.shape.empty() ? 0 : e.shape[0]));
        columns += out[i];
        bf16 = bf16 && e.dtype == DType::bf16;
    }
    Linear w = reserve(arena, in, columns, bf16 ? bf16_layout : Layout::f32, gated);

    // 16 rows at a time: one cache line of a panel row is then written by neighbouring stores.
    std::vector<uint16_t> narrow(bf16 ? size_t(16) * in : 0);
    std::vector<float> wide(bf16 ? 0 : size_t(16) * in);
    int first = 0;
    for (size_t part = 0; part < weights.size(); ++part) {
        const TensorEntry& e = source.find(weights[part]);
        for (int c = 0; c < out[part]; c += 16) {
            const int n = std::min(16, out[part] - c);
            const int64_t from = int64_t(c) * in, count = int64_t(n) * in;
            if (bf16)
                source.read(e, from, count, narrow.data());
            else
                source.read_f32(e, from, count, wide.data());
            for (int i = 0; i < n; ++i) {
                const int column = packed_column(c + i, static_cast<int>(part), first, gated);
                if (bf16)
                    put_bf16(w, column, &narrow[size_t(i) * in]);
                else
                    put_f32(w, column, &wide[size_t(i) * in]);
            }
        }
        first += out[part];
    }

    if (!biases.empty()) {
        float* bias = arena.floats(size_t(w.panels) * kPanel);
        std::vector<float> values;
        first = 0;
        for (size_t part = 0; part < biases.size(); ++part) {
            const TensorEntry& e = source.expect(biases[part], {out[part]});
            values.resize(out[part]);
            source.read_f32(e, 0, out[part], values.data());
            for (int c = 0; c < out[part]; ++c)
                bias[packed_column(c, static_cast<int>(part), first, gated)] = values[c];
            first += out[part];
        }
        w.bias = bias;
    }
    return w;
}

Linear pack_matrix(Arena& arena, const float* weight, int out, int in) {
    Linear w = reserve(arena, in, out, Layout::f32, false);
    for (int c = 0; c < out; ++c) put_f32(w, c, weight + size_t(c) * in);
    return w;
}

}  // namespace smolvla::cpu

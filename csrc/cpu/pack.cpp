#include "cpu/pack.h"

#include <algorithm>
#include <optional>

#include "cpu/pack_codes.h"
#include "cpu/panel_runs.h"
#include "runtime/error.h"
#include "runtime/threads.h"

namespace smolvla::cpu {
namespace {

constexpr int kDepthTile = 64;  // k at a time: their rows of a panel stay in L1 while it is filled

// Rows [count, w.in] into columns [at, at + count) of a panel.
void put_f32(const PackedLinear& w, char* panel, int at, int count, const float* rows) {
    float* to = reinterpret_cast<float*>(panel) + at;
    for (int begin = 0; begin < w.in; begin += kDepthTile)
        for (int i = 0; i < count; ++i)
            for (int k = begin; k < std::min(w.in, begin + kDepthTile); ++k)
                to[size_t(k) * kPanel + i] = rows[size_t(i) * w.in + k];
}

void put_bf16(const PackedLinear& w, char* panel, int at, int count, const uint16_t* rows) {
    uint16_t* to = reinterpret_cast<uint16_t*>(panel);
    const bool words = w.layout == Layout::bf16_words;
    for (int begin = 0; begin < w.in; begin += kDepthTile)
        for (int i = 0; i < count; ++i) {
            const uint16_t* row = rows + size_t(i) * w.in;
            const int column = at + i, end = std::min(w.in, begin + kDepthTile);
            if (words)  // the even k in the high half of a word
                for (int k = begin; k < end; ++k)
                    to[size_t(k / 2) * 2 * kPanel + 2 * column + (k % 2 == 0)] = row[k];
            else  // low half of a word: columns 0..15
                for (int k = begin; k < end; ++k)
                    to[size_t(k) * kPanel + 2 * (column % 16) + column / 16] = row[k];
        }
}

PackedLinear reserve(WeightStore& store, const std::string& name, int in, int columns,
                     Layout layout, bool gated) {
    PackedLinear w;
    w.name = name;
    w.in = in;
    w.out = gated ? columns / 2 : columns;
    w.panels = gated ? (w.out + 15) / 16 : (columns + kPanel - 1) / kPanel;
    w.layout = layout;
    w.gated = gated;
    w.data = static_cast<char*>(store.allocate(w.panels * w.panel_bytes(), name));
    return w;
}

std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : "+") + name;
    return text;
}

// Reads and packs panel by panel, each by one thread of the pool.
void fill(const PackedLinear& w, const TensorSource& source,
          const std::vector<std::string>& weights, const std::vector<int>& out, ThreadPool& pool) {
    std::vector<const TensorEntry*> entries;
    for (const std::string& name : weights) entries.push_back(&source.find(name));
    const size_t room = size_t(kPanel) * w.in;
    std::vector<uint16_t> narrow(w.layout == Layout::f32 ? 0 : room * pool.size());
    std::vector<float> wide(w.layout == Layout::f32 ? room * pool.size() : 0);
    pool.run_fallible(w.panels, [&](int p, int thread) {
        char* panel = w.data + size_t(p) * w.panel_bytes();
        runs_of(p, out, w.gated, [&](const Run& run) {
            const TensorEntry& e = *entries[size_t(run.part)];
            const int64_t first = int64_t(run.row) * w.in, count = int64_t(run.count) * w.in;
            if (w.layout == Layout::f32) {
                float* rows = &wide[room * thread];
                source.read_f32(e, first, count, rows);
                put_f32(w, panel, run.at, run.count, rows);
            } else {
                uint16_t* rows = &narrow[room * thread];
                source.read(e, first, count, rows);
                put_bf16(w, panel, run.at, run.count, rows);
            }
        });
    });
}

// The layout of stacked floats; mixed parts are widened to float32, which is exact.
Layout layout_of(const TensorSource& source, const std::vector<std::string>& weights, int in,
                 const std::vector<int>& out, Layout bf16_layout) {
    bool bf16 = true;
    for (size_t i = 0; i < weights.size(); ++i)
        bf16 = bf16 && source.expect_matrix(weights[i], out[i], in).dtype == DType::bf16;
    return bf16 ? bf16_layout : Layout::f32;
}

}  // namespace

PackedLinear pack_linear(WeightStore& store, const TensorSource& source,
                         const std::vector<std::string>& weights,
                         const std::vector<std::string>& biases, int in,
                         const std::vector<int>& out, bool gated, const PackOptions& options,
                         ThreadPool& pool) {
    int columns = 0;
    for (int rows : out) columns += rows;
    const std::optional<CodeFormat> codes = codes_of(source, weights, in, out);
    const Layout layout = !codes ? layout_of(source, weights, in, out, options.bf16_layout)
                          : codes->bits == 8 ? Layout::codes8
                                             : Layout::codes4;
    PackedLinear w = reserve(store, joined(weights), in, columns, layout, gated);
    if (codes) {
        w.group_words = codes->group ? codes->group / 4 : code_words(in);
        float* scales =
            store.floats(size_t(w.panels) * w.groups() * kPanel, joined(weights) + ".scale");
        w.scales = scales;
        const CodeOrder order = layout == Layout::codes8 ? options.order8 : options.order4;
        if (!store.filled()) fill_codes(w, scales, source, weights, out, order, pool);
    } else if (!store.filled()) {
        fill(w, source, weights, out, pool);
    }
    if (biases.empty()) return w;

    float* bias = store.floats(size_t(w.panels) * kPanel, joined(biases));
    w.bias = bias;
    std::vector<std::vector<float>> values;
    for (size_t part = 0; part < biases.size(); ++part) {
        const TensorEntry& e = source.expect(biases[part], {out[part]});
        values.emplace_back(size_t(out[part]));
        if (!store.filled()) source.read_f32(e, 0, out[part], values.back().data());
    }
    if (!store.filled())
        for (int p = 0; p < w.panels; ++p)
            runs_of(p, out, gated, [&](const Run& run) {
                std::copy_n(&values[size_t(run.part)][size_t(run.row)], run.count,
                            bias + p * kPanel + run.at);
            });
    return w;
}

PackedLinear pack_matrix(WeightStore& store, const std::string& name, const float* weight, int out,
                         int in) {
    PackedLinear w = reserve(store, name, in, out, Layout::f32, false);
    if (store.filled()) return w;
    for (int p = 0; p < w.panels; ++p)
        put_f32(w, w.data + size_t(p) * w.panel_bytes(), 0, std::min(kPanel, out - p * kPanel),
                weight + size_t(p) * kPanel * in);
    return w;
}

}  // namespace smolvla::cpu

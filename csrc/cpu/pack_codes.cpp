#include "cpu/pack_codes.h"

#include <algorithm>
#include <cmath>

#include "cpu/panel_runs.h"
#include "runtime/error.h"
#include "runtime/threads.h"

namespace smolvla::cpu {
namespace {

std::string scale_of(const std::string& name) { return name + ".scale"; }

// The words of k under one scale, for rows of `in` with so many scales. 0: there is no such group.
int group_words_of(int in, int64_t groups) {
    for (int group : {32, 64, 128})
        if ((in + group - 1) / group == groups) return group / 4;
    return 0;
}

Codes codes_of(const TensorSource& source, const std::string& name, int in, int out) {
    const TensorEntry& e = source.find(name);
    if (in > kMaxCodes)
        fail(ErrorKind::checkpoint, "tensor %s: expected at most %d codes in a row, got %d",
             name.c_str(), kMaxCodes, in);
    if (!source.has(scale_of(name)))
        fail(ErrorKind::checkpoint, "tensor %s holds codes, but %s is missing", name.c_str(),
             scale_of(name).c_str());
    const TensorEntry& scale = source.find(scale_of(name));
    const DType wanted = e.dtype == DType::i8 ? DType::f32 : DType::f16;
    if (scale.dtype != wanted)
        fail(ErrorKind::checkpoint, "tensor %s: expected scales of %s", scale.name.c_str(),
             wanted == DType::f32 ? "F32" : "F16");
    if (e.dtype == DType::i8) {
        source.expect(name, {out, in});
        source.expect(scale.name, {out});
        return {Layout::codes8, code_words(in)};
    }
    source.expect(name, {out, (in + 1) / 2});
    const int64_t groups = scale.shape.size() == 2 ? scale.shape[1] : 0;
    const int words = group_words_of(in, groups);
    if (words == 0 || scale.shape[0] != out)
        fail(ErrorKind::checkpoint,
             "tensor %s: expected [%d, groups] with groups of 32, 64 or 128 of %d columns",
             scale.name.c_str(), out, in);
    return {Layout::codes4, words};
}

void put8(char* panel, int at, int count, int in, const uint8_t* rows, CodeOrder order,
          const std::string& name) {
    const int run = order.run;
    for (int i = 0; i < count; ++i)
        for (int k = 0; k < in; ++k) {
            const int code = static_cast<int8_t>(rows[size_t(i) * in + k]);
            if (code < -127)
                fail(ErrorKind::checkpoint, "tensor %s: expected codes in [-127, 127], got %d",
                     name.c_str(), code);
            panel[size_t(k / run) * kPanel * run + size_t(run) * (at + i) + k % run] =
                static_cast<char>(code + order.offset);
        }
}

void put4(char* panel, int at, int count, int in, const uint8_t* rows, int run) {
    const size_t pitch = size_t(in + 1) / 2;
    for (int i = 0; i < count; ++i) {
        const int column = at + i, shift = column < 16 ? 0 : 4;
        for (int k = 0; k < in; ++k) {
            const int code = rows[i * pitch + k / 2] >> (k % 2 * 4) & 15;
            panel[size_t(k / run) * kPanel / 2 * run + size_t(run) * (column % 16) + k % run] |=
                static_cast<char>(code << shift);
        }
    }
}

}  // namespace

std::optional<Codes> codes_of(const TensorSource& source, const std::vector<std::string>& weights,
                              int in, const std::vector<int>& out) {
    size_t integers = 0;
    for (const std::string& name : weights) {
        const DType dtype = source.find(name).dtype;
        integers += dtype == DType::i8 || dtype == DType::u8;
    }
    if (integers == 0) return std::nullopt;
    std::vector<Codes> formats;
    if (integers == weights.size())
        for (size_t i = 0; i < weights.size(); ++i)
            formats.push_back(codes_of(source, weights[i], in, out[i]));
    for (size_t i = 0; i < weights.size(); ++i)
        if (formats.empty() || formats[i].layout != formats[0].layout ||
            formats[i].group_words != formats[0].group_words)
            fail(ErrorKind::checkpoint,
                 "tensors %s and %s are computed together: expected one format",
                 weights.front().c_str(), weights[std::max(i, size_t{1})].c_str());
    return formats[0];
}

void fill_codes(const Linear& w, float* scales, const TensorSource& source,
                const std::vector<std::string>& weights, const std::vector<int>& out,
                CodeOrder order, ThreadPool& pool) {
    const bool four = w.layout == Layout::codes4;
    const int pitch = four ? (w.in + 1) / 2 : w.in, groups = w.groups();
    std::vector<uint8_t> room(size_t(kPanel) * pitch * pool.size());
    std::vector<float> scale_room(size_t(kPanel) * groups * pool.size());
    pool.run_fallible(w.panels, [&](int p, int thread) {
        char* panel = w.data + size_t(p) * w.panel_bytes();
        float* to = scales + size_t(p) * groups * kPanel;
        runs_of(p, out, w.gated, [&](const Run& run) {
            const std::string& name = weights[size_t(run.part)];
            uint8_t* rows = &room[size_t(kPanel) * pitch * thread];
            source.read(source.find(name), int64_t(run.row) * pitch, int64_t(run.count) * pitch,
                        rows);
            if (four)
                put4(panel, run.at, run.count, w.in, rows, order.run);
            else
                put8(panel, run.at, run.count, w.in, rows, order, name);
            float* values = &scale_room[size_t(kPanel) * groups * thread];
            source.read_f32(source.find(scale_of(name)), int64_t(run.row) * groups,
                            int64_t(run.count) * groups, values);
            for (int i = 0; i < run.count; ++i)
                for (int g = 0; g < groups; ++g) {
                    const float scale = values[size_t(i) * groups + g];
                    if (!std::isfinite(scale) || scale < 0)
                        fail(ErrorKind::checkpoint, "tensor %s: row %d has a scale of %g",
                             scale_of(name).c_str(), run.row + i, double{scale});
                    to[size_t(g) * kPanel + run.at + i] = scale;
                }
        });
    });
}

}  // namespace smolvla::cpu

#include "cpu/pack_codes.h"

#include <algorithm>
#include <cmath>

#include "cpu/panel_runs.h"
#include "runtime/error.h"
#include "runtime/threads.h"

namespace smolvla::cpu {
namespace {

std::string scale_of(const std::string& name) { return name + ".scale"; }

// What a panel holds for an int8 code.
char byte_of(uint8_t stored, CodeOrder order, const std::string& name) {
    const int code = static_cast<int8_t>(stored);
    if (code < -127)
        fail(ErrorKind::checkpoint, "tensor %s: expected codes in [-127, 127], got %d",
             name.c_str(), code);
    return static_cast<char>(code + order.offset);
}

void put8(char* panel, int at, int count, int in, const uint8_t* rows, CodeOrder order,
          const std::string& name) {
    const int run = order.run;
    for (int i = 0; i < count; ++i)
        for (int k = 0; k < in; ++k)
            panel[size_t(k / run) * kPanel * run + size_t(run) * (at + i) + k % run] =
                byte_of(rows[size_t(i) * in + k], order, name);
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

float checked(float scale, const std::string& name, int row) {
    if (!std::isfinite(scale) || scale < 0)
        fail(ErrorKind::checkpoint, "tensor %s: row %d has a scale of %g", name.c_str(), row,
             double{scale});
    return scale;
}

PackedLinear layout_of(const OnnxCodes& from) {
    PackedLinear w;
    w.name = "codes";
    w.in = from.in;
    w.out = from.out;
    w.panels = (from.out + kPanel - 1) / kPanel;
    w.layout = from.group ? Layout::codes4 : Layout::codes8;
    w.group_words = from.group ? from.group / 4 : code_words(from.in);
    return w;
}

// Columns [first, first + count) of ONNX's codes into a panel.
void put_columns8(const OnnxCodes& from, int first, int count, CodeOrder order, char* panel) {
    const int run = order.run;
    for (int k = 0; k < from.in; ++k) {
        char* to = panel + size_t(k / run) * kPanel * run + k % run;
        const uint8_t* row = from.codes + size_t(k) * from.out + first;
        for (int i = 0; i < count; ++i) to[run * i] = byte_of(row[i], order, "codes");
    }
}

void put_columns4(const OnnxCodes& from, int first, int count, int run, char* panel) {
    for (int k = 0; k < from.in; ++k) {
        char* to = panel + size_t(k / run) * kPanel / 2 * run + k % run;
        for (int i = 0; i < count; ++i) {
            const size_t at = size_t(k) * from.out + first + i;
            const int code = (from.codes[at / 2] >> (at % 2 * 4) & 15) ^ 8;
            to[run * (i % 16)] |= static_cast<char>(code << (i < 16 ? 0 : 4));
        }
    }
}

}  // namespace

void fill_codes(const PackedLinear& w, float* scales, const TensorSource& source,
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
                for (int g = 0; g < groups; ++g)
                    to[size_t(g) * kPanel + run.at + i] =
                        checked(values[size_t(i) * groups + g], scale_of(name), run.row + i);
        });
    });
}

size_t packed_bytes(const OnnxCodes& from) {
    const PackedLinear w = layout_of(from);
    return w.panels * (w.panel_bytes() + sizeof(float) * w.groups() * kPanel);
}

PackedLinear pack_onnx_codes(const OnnxCodes& from, CodeOrder order, char* room) {
    PackedLinear w = layout_of(from);
    w.data = room;
    float* scales = reinterpret_cast<float*>(room + w.panels * w.panel_bytes());
    w.scales = scales;
    const int groups = w.groups();
    for (int p = 0; p < w.panels; ++p, scales += size_t(groups) * kPanel) {
        const int first = p * kPanel, count = std::min(kPanel, from.out - first);
        char* panel = room + p * w.panel_bytes();
        if (from.group)
            put_columns4(from, first, count, order.run, panel);
        else
            put_columns8(from, first, count, order, panel);
        for (int g = 0; g < groups; ++g)
            for (int i = 0; i < count; ++i)
                scales[g * kPanel + i] = checked(from.scales[size_t(g) * from.out + first + i],
                                                 scale_of(w.name), first + i);
    }
    return w;
}

}  // namespace smolvla::cpu

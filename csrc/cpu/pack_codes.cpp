#include "cpu/pack_codes.h"

#include <algorithm>
#include <cmath>

#include "cpu/panel_runs.h"
#include "runtime/error.h"
#include "runtime/threads.h"

namespace smolvla::cpu {
namespace {

std::string scale_of(const std::string& name) { return name + ".scale"; }

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

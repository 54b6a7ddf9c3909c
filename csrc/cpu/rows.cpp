#include "cpu/rows.h"

#include <cstring>

namespace smolvla::cpu {

namespace {

float value_at(const char* row, int column, DType dtype) {
    if (dtype == DType::i8) return static_cast<signed char>(row[column]);
    if (dtype == DType::f32) {
        float value;
        std::memcpy(&value, row + size_t(column) * 4, 4);
        return value;
    }
    uint16_t bits;
    std::memcpy(&bits, row + size_t(column) * 2, 2);
    return dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

}  // namespace

void gather_rows(const Table& table, const int* ids, int count, float scale, Mat out) {
    const size_t row_bytes = size_t(out.cols) * dtype_bytes(table.dtype);
    for (int i = 0; i < count; ++i) {
        const char* from = static_cast<const char*>(table.rows) + size_t(ids[i]) * row_bytes;
        const float unit = table.scales ? table.scales[ids[i]] : 1.0f;
        for (int c = 0; c < out.cols; ++c)
            out.row(i)[c] = value_at(from, c, table.dtype) * unit * scale;
    }
}

void flow_update(Mat x, Mat v, const float* schedule, const Pull& pull) {
    const float dt = schedule[0], t = schedule[1], gain = schedule[2];
    for (int r = 0; r < x.rows; ++r)
        for (int c = 0; c < x.cols; ++c) {
            float velocity = v.row(r)[c];
            if (pull.previous.data) {
                const float clean = x.row(r)[c] - t * velocity;
                velocity -= gain * ((pull.previous.row(r)[c] - clean) * pull.weight[r]);
            }
            x.row(r)[c] += dt * velocity;
        }
}

}  // namespace smolvla::cpu

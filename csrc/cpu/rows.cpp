#include "cpu/rows.h"

#include <cstring>

namespace smolvla::cpu {

void gather_rows(const void* table, DType dtype, const int* ids, int count, float scale, Mat out) {
    const size_t row_bytes = size_t(out.cols) * dtype_bytes(dtype);
    for (int i = 0; i < count; ++i) {
        const char* from = static_cast<const char*>(table) + size_t(ids[i]) * row_bytes;
        for (int c = 0; c < out.cols; ++c) {
            float value;
            if (dtype == DType::f32) {
                std::memcpy(&value, from + size_t(c) * 4, 4);
            } else {
                uint16_t bits;
                std::memcpy(&bits, from + size_t(c) * 2, 2);
                value = dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
            }
            out.row(i)[c] = value * scale;
        }
    }
}

void flow_update(Mat x, Mat v, float dt, float t, Mat previous, const float* weight, float gain) {
    for (int r = 0; r < x.rows; ++r)
        for (int c = 0; c < x.cols; ++c) {
            float velocity = v.row(r)[c];
            if (previous.data) {
                const float clean = x.row(r)[c] - t * velocity;
                velocity -= gain * ((previous.row(r)[c] - clean) * weight[r]);
            }
            x.row(r)[c] += dt * velocity;
        }
}

}  // namespace smolvla::cpu

#include "cpu/rows.h"

#include <cmath>
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

void flow_update(Mat x, Mat v, const float* schedule, const Pull& pull, Mat last) {
    const float dt = schedule[0], t = schedule[1], gain = schedule[2];
    const float now = schedule[3], before = schedule[4];
    for (int r = 0; r < x.rows; ++r)
        for (int c = 0; c < x.cols; ++c) {
            float velocity = v.row(r)[c];
            if (pull.previous.data) {
                const float clean = x.row(r)[c] - t * velocity;
                velocity -= gain * ((pull.previous.row(r)[c] - clean) * pull.weight[r]);
            }
            if (last.data) {
                const float joined = now * velocity + before * last.row(r)[c];
                last.row(r)[c] = velocity;
                velocity = joined;
            }
            x.row(r)[c] += dt * velocity;
        }
}

void compare_row(const float* a, const float* b, int columns, float* sums) {
    double ab = 0, aa = 0, bb = 0, off = 0;
    float most = 0;
    for (int c = 0; c < columns; ++c) {
        const float difference = std::fabs(a[c] - b[c]);
        ab += double{a[c]} * double{b[c]};
        aa += double{a[c]} * double{a[c]};
        bb += double{b[c]} * double{b[c]};
        off += double{difference} * double{difference};
        most = difference <= most ? most : difference;  // a NaN stays
        if (most != most) break;
    }
    sums[0] = static_cast<float>(ab), sums[1] = static_cast<float>(aa);
    sums[2] = static_cast<float>(bb), sums[3] = static_cast<float>(off);
    sums[4] = most;
}

namespace {

float patch_change(const float* a, const float* b, const FrameBlocks& frame, size_t first,
                   int side) {
    float sum = 0;
    for (int c = 0; c < 3; ++c) {
        const size_t at = first + size_t(c) * frame.height * frame.width;
        for (int y = 0; y < side; ++y)
            for (int x = 0; x < side; ++x) {
                const size_t i = at + size_t(y) * frame.width + x;
                sum += std::fabs(a[i] - b[i]);
            }
    }
    return sum / static_cast<float>(6 * side * side);
}

}  // namespace

float block_change(const float* pixels, const float* reference, const FrameBlocks& frame, int y,
                   int x, int patch) {
    float most = 0;
    for (int dy = 0; dy < frame.side; dy += patch)
        for (int dx = 0; dx < frame.side; dx += patch) {
            const size_t first =
                size_t(y * frame.side + dy) * frame.width + size_t(x * frame.side + dx);
            const float change = patch_change(pixels, reference, frame, first, patch);
            most = change <= most ? most : change;
            if (most != most) return most;  // a NaN stays
        }
    return most;
}

void copy_block(const float* pixels, const FrameBlocks& frame, int id, float* to) {
    const size_t corner = size_t(id / frame.across()) * frame.side * frame.width +
                          size_t(id % frame.across()) * frame.side;
    for (int c = 0; c < 3; ++c)
        for (int y = 0; y < frame.side; ++y) {
            const size_t at = corner + (size_t(c) * frame.height + y) * frame.width;
            std::memcpy(to + at, pixels + at, sizeof(float) * size_t(frame.side));
        }
}

}  // namespace smolvla::cpu

// Plain operations, on so few numbers that they need no kernels; see ops/ops.h.
#pragma once

#include "ops/ops.h"

namespace smolvla::cpu {

void gather_rows(const Table& table, const int* ids, int count, float scale, Mat out);
void flow_update(Mat x, Mat v, const float* schedule, const Pull& pull, Mat last);
void compare_row(const float* a, const float* b, int columns, float* sums);

// Pixels [3, height, width] in blocks of side x side.
struct FrameBlocks {
    int height, width, side;
    int across() const { return width / side; }
    int down() const { return height / side; }
};
float block_change(const float* pixels, const float* reference, const FrameBlocks& frame, int y,
                   int x, int patch);
void copy_block(const float* pixels, const FrameBlocks& frame, int id, float* to);

}  // namespace smolvla::cpu

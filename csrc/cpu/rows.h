// Operations on so few rows that they are not worth a thread; see ops/ops.h.
#pragma once

#include "ops/ops.h"

namespace smolvla::cpu {

void gather_rows(const Table& table, const int* ids, int count, float scale, Mat out);
void flow_update(Mat x, Mat v, const float* schedule, const Pull& pull);

}  // namespace smolvla::cpu

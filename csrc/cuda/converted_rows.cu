#include "cuda/converted_rows.h"

#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/status.h"

namespace smolvla::cuda {

void ConvertedRows::expect_rows(int rows) { most_rows_ = std::max(most_rows_, rows); }
void ConvertedRows::expect_columns(int columns) { widest_ = std::max(widest_, columns); }
void ConvertedRows::reserve() { room({nullptr, most_rows_, widest_}, widest_, Storage::f32); }

Mat ConvertedRows::as_f32(Mat x) {
    if (x.storage == Storage::f32) return x;
    const Mat to = room(x, x.cols, Storage::f32);
    check(copy_rows(x, 1.0f, to, x.cols, stream_), "rows to float32");
    return to;
}

Mat ConvertedRows::as_bf16(Mat x, int padded) {
    const bool aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.ld % 4 == 0;
    if (x.storage == Storage::bf16_rows && aligned) return x;
    const Mat to = room(x, padded, Storage::bf16_rows);
    check(copy_rows(x, 1.0f, to, padded, stream_), "rows to bfloat16");
    return to;
}

Mat ConvertedRows::as_i8(Mat x) {
    if (x.storage == Storage::i8) return x;
    const Mat to = room(x, x.cols, Storage::i8);
    check(quantize_rows(x, to, stream_), "rows to integers");
    return to;
}

// As large as the largest that is expected, so that it grows once.
Mat ConvertedRows::room(Mat like, int columns, Storage storage) {
    const size_t ld = size_t(std::max(columns, widest_) + 31) / 16 * 16 + 16;
    const int rows = std::max(most_rows_, like.rows);
    void* data = scratch_.room(size_t(rows) * ld * sizeof(float), "rows in another storage");
    return {static_cast<float*>(data), like.rows, like.cols, ptrdiff_t(ld), storage};
}

}  // namespace smolvla::cuda

// Rows in the storage that a kernel takes: as they are where that is it, else copied into memory
// that is kept for this.
#pragma once

#include "cuda/memory.h"
#include "ops/ops.h"

namespace smolvla::cuda {

class ConvertedRows {
public:
    // In memory and on a stream that outlive this.
    ConvertedRows(DeviceMemory& memory, cudaStream_t stream) : scratch_(memory), stream_(stream) {}

    // That matrices of so many rows, and weights of so many columns, are going to come.
    void expect_rows(int rows);
    void expect_columns(int columns);
    // Room for any of them: where stages are recorded, nothing may be allocated.
    void reserve();

    Mat as_f32(Mat x);
    // Rows at multiples of 16 bytes, zero behind their columns up to `padded`.
    Mat as_bf16(Mat x, int padded);
    Mat as_i8(Mat x);

private:
    Mat room(Mat like, int columns, Storage storage);

    Scratch scratch_;
    const cudaStream_t stream_;
    int most_rows_ = 0, widest_ = 0;
};

}  // namespace smolvla::cuda

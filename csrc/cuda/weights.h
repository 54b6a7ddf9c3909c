// Weights in device memory, in the layout of the kernel that multiplies with them.
#pragma once

#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/memory.h"

namespace smolvla::cuda {

enum class Format { f32, bf16, i8, i4 };

struct DeviceLinear : Linear {
    std::string name;  // tensor names joined by '+'
    Format format = Format::f32;
    int in = 0;
    int out = 0;      // columns of the result
    int columns = 0;  // rows of the weight as they lie: gated ones in blocks of 16
    int ld = 0;       // elements from row to row, of bf16 and i8
    int group = 0;    // of i4
    bool gated = false;
    void* data = nullptr;
    void* scales = nullptr;  // i8: float [columns]; i4: as cuda/fragments.h has them
    const float* bias = nullptr;
    size_t bytes = 0;
};

// Weights [out_i, in] stacked along the output; gated: exactly two. `exact`: float32 arithmetic, so
// bfloat16 weights lie without gaps.
DeviceLinear upload_linear(DeviceMemory& memory, const TensorSource& source,
                           const std::vector<std::string>& weights,
                           const std::vector<std::string>& biases, int in,
                           const std::vector<int>& out, bool gated, bool exact);
DeviceLinear upload_matrix(DeviceMemory& memory, const std::string& name, const float* weight,
                           int out, int in);

// What multiplies with it; `exact`: bfloat16 weights meet float32 rows.
LinearInfo describe(const DeviceLinear& w, bool exact);

}  // namespace smolvla::cuda

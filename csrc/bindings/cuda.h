// The CUDA backend as the bindings see it, in builds without it too.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "ops/ops.h"

namespace smolvla::bindings {

void bind_cuda(pybind11::module_& m);

// Raises a backend error that says what is missing: the build, the driver, a GPU, memory.
std::unique_ptr<Backend> make_gpu_backend(Compute compute, size_t tensor_bytes);

}  // namespace smolvla::bindings

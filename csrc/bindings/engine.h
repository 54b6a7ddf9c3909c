#pragma once

#include "bindings/arrays.h"
#include "ops/ops.h"

namespace smolvla::bindings {

void bind_engine(py::module_& m);
void bind_ops(py::module_& m);
void bind_kernel_loop(py::module_& m);
void bind_packed(py::module_& m);
void bind_device_arrays(py::module_& m);
void bind_cuda_ops(py::module_& m);  // with CUDA only

// A PackedImage or None. Raises a backend error for anything else.
std::shared_ptr<const PackedImage> image_of(const py::object& image);

// A uint8 or float32 frame [height, width, 3]; None is a masked camera.
Frame frame_of(const py::object& frame, const char* name);

}  // namespace smolvla::bindings

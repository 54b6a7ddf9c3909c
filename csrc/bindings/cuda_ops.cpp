// _core.cuda_ops: what smolvla_edge.ops calls. In builds with CUDA only.
#include "bindings/cuda_ops.h"

#include "bindings/engine.h"

namespace smolvla::bindings {

void bind_cuda_ops(py::module_& m) {
    py::module_ ops = m.def_submodule("cuda_ops", "CUDA kernels; use smolvla_edge.ops.");
    bind_cuda_linear(ops);
    bind_cuda_attention(ops);
    bind_cuda_rows(ops);
    bind_cuda_images(ops);
}

}  // namespace smolvla::bindings

#include "bindings/cuda.h"

#include <pybind11/stl.h>

#include "runtime/error.h"

#ifdef SMOLVLA_WITH_CUDA
#include "cuda/backend.h"
#endif

namespace smolvla::bindings {
namespace {

namespace py = pybind11;

#ifdef SMOLVLA_WITH_CUDA
constexpr bool kBuilt = true;
#else
constexpr bool kBuilt = false;

struct CudaDevice {
    std::string name;
    int sm;
    size_t memory_bytes;
    bool integrated;
};
struct CudaStatus {
    bool emulated = false;
    std::vector<int> architectures;
    std::string driver;
    std::vector<CudaDevice> devices;
    std::string error =
        "this build has no CUDA backend. Build one in the source folder: pip install . -C "
        "cmake.define.SMOLVLA_CUDA=ON, with nvcc (12.2 or newer) on PATH; or compute on the CPU "
        "(device='cpu')";
};
CudaStatus cuda_status() { return {}; }
#endif

py::object text_or_none(const std::string& text) {
    return text.empty() ? py::object(py::none()) : py::object(py::str(text));
}

py::dict cuda() {
    const CudaStatus status = cuda_status();
    py::list devices;
    for (const CudaDevice& device : status.devices) {
        py::dict d;
        d["name"] = device.name;
        d["sm"] = device.sm;
        d["memory_bytes"] = device.memory_bytes;
        d["integrated"] = device.integrated;
        devices.append(d);
    }
    py::dict d;
    d["built"] = kBuilt;
    d["emulated"] = status.emulated;
    d["architectures"] = status.architectures;
    d["driver"] = text_or_none(status.driver);
    d["devices"] = devices;
    d["error"] = text_or_none(status.error);
    return d;
}

}  // namespace

std::unique_ptr<Backend> make_gpu_backend(Compute compute, size_t tensor_bytes) {
#ifdef SMOLVLA_WITH_CUDA
    // Constants that the model makes stay in host memory too; matrices do not.
    return make_cuda_backend(compute, tensor_bytes + (size_t{64} << 20));
#else
    (void)compute, (void)tensor_bytes;
    fail(ErrorKind::backend, "device cuda: %s", cuda_status().error.c_str());
#endif
}

void bind_cuda(py::module_& m) { m.def("cuda", &cuda); }

}  // namespace smolvla::bindings

// _core.emulator of a build with SMOLVLA_CUDA=EMULATED: what tests in Python may turn (control.h).
#include <pybind11/pybind11.h>

#include <thread>

#include "control.h"
#include "runtime.h"

namespace py = pybind11;

namespace {

// In a thread that works on that device alone.
uintptr_t allocate(int device, size_t bytes) {
    void* memory = nullptr;
    std::thread([&] {
        if (cudaSetDevice(device) == cudaSuccess) cudaMalloc(&memory, bytes);
    }).join();
    return reinterpret_cast<uintptr_t>(memory);
}
void release(int device, uintptr_t memory) {
    std::thread([&] {
        cudaSetDevice(device);
        cudaFree(reinterpret_cast<void*>(memory));
    }).join();
}

}  // namespace

void bind_emulator(py::module_& m) {
    py::module_ e = m.def_submodule("emulator", "The machine that CUDA kernels run on in tests.");
    e.def("use_device", &emulator::use_device, py::arg("architecture"));
    e.def("use_devices", &emulator::use_devices, py::arg("count"));
    e.def("opened", &emulator::opened, py::arg("device"));
    e.def("allocate", &allocate, py::arg("device"), py::arg("bytes"));
    e.def("release", &release, py::arg("device"), py::arg("memory"));
    e.def("remove_device", &emulator::remove_device, py::arg("removed"));
    e.def("fail_allocation", &emulator::fail_allocation, py::arg("nth"));
    e.def("device_bytes_in_use", &emulator::device_bytes_in_use);
    e.def("allocations_in_use", &emulator::allocations_in_use);
    e.def("counters", [] {
        const emulator::Counters c = emulator::counters();
        py::dict d;
        d["kernels"] = c.kernels;
        d["graph_launches"] = c.graph_launches;
        d["copies"] = c.copies;
        return d;
    });
    e.def(
        "configure",
        [](uint32_t seed, bool deferred, bool protect_device_memory) {
            emulator::Options& options = emulator::options();
            options.seed = seed;
            options.deferred = deferred;
            options.protect_device_memory = protect_device_memory;
        },
        py::arg("seed") = 0, py::arg("deferred") = false, py::arg("protect_device_memory") = false);
}

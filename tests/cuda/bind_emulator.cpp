// _core.emulator of a build with SMOLVLA_CUDA=EMULATED: what tests in Python may turn (control.h).
#include <pybind11/pybind11.h>

#include "control.h"

namespace py = pybind11;

void bind_emulator(py::module_& m) {
    py::module_ e = m.def_submodule("emulator", "The machine that CUDA kernels run on in tests.");
    e.def("use_device", &emulator::use_device, py::arg("architecture"));
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

// _core.DeviceArray: what this module reads of another library's array. In every build, for
// tests: reading needs no GPU.
#include "bindings/device_array.h"
#include "bindings/engine.h"
#include "bindings/made.h"

namespace smolvla::bindings {
namespace {

struct HeldArray : MadeByInit {
    DeviceArray array;
};

py::tuple tuple_of(const std::vector<int64_t>& numbers) {
    py::tuple t(numbers.size());
    for (size_t i = 0; i < numbers.size(); ++i) t[i] = numbers[i];
    return t;
}

}  // namespace

void bind_device_arrays(py::module_& m) {
    using py::arg;
    py::class_<HeldArray>(m, "DeviceArray",
                          "An array of another library as the operators read it; keeps its memory.")
        .def(py::init([](const py::object& x, const char* name, intptr_t stream) {
                 auto held = make<HeldArray>();
                 held->array = read_device_array(x, name, stream);
                 return held;
             }),
             arg("x"), arg("name") = "x", arg("stream") = kSameStream)
        .def_property_readonly("data", [](const HeldArray& h) { return uintptr_t(h.array.data); })
        .def_property_readonly("shape", [](const HeldArray& h) { return tuple_of(h.array.shape); })
        .def_property_readonly("strides",
                               [](const HeldArray& h) { return tuple_of(h.array.strides); })
        .def_property_readonly("dtype",
                               [](const HeldArray& h) { return element_name(h.array.element); })
        .def_property_readonly("device", [](const HeldArray& h) { return h.array.device; })
        .def_property_readonly("pinned",
                               [](const HeldArray& h) { return h.array.place == Place::host; })
        .def_property_readonly("read_only", [](const HeldArray& h) { return h.array.read_only; })
        .def_property_readonly("producer_stream",
                               [](const HeldArray& h) { return h.array.producer_stream; })
        .def("__repr__", [](const HeldArray& h) { return h.array.describe(); });
}

}  // namespace smolvla::bindings

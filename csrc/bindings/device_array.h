// An array of another library in a GPU's memory: read through DLPack (__dlpack__), or where there
// is none through __cuda_array_interface__, which has no bfloat16. Needs no CUDA: it looks at what
// the library says about its array, never at the memory.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace smolvla::bindings {

namespace py = pybind11;

enum class Element { f32, bf16, f16, f64, i8, u8, i32, i64, boolean };
const char* element_name(Element element);
int element_bytes(Element element);

// Where the library says that the memory is. `host`: pinned, and readable by every GPU.
enum class Place { device, managed, host };

// What a producer is told (DLPack's `stream`) when nothing needs to wait: the caller's stream is
// the one that it works on itself.
constexpr intptr_t kSameStream = -1;
// 1 and 2 are CUDA's own names of the legacy and the per-thread default stream.
constexpr uintptr_t kLegacyStream = 1;

struct DeviceArray {
    void* data = nullptr;
    std::vector<int64_t> shape, strides;  // strides in elements, as many as shape
    Element element = Element::f32;
    Place place = Place::device;
    int device = -1;  // -1: __cuda_array_interface__ does not say
    bool read_only = false;
    uintptr_t producer_stream = 0;  // what was asked of it before is on this stream; 0: nothing is
    std::shared_ptr<void> owner;    // keeps the memory

    int rank() const { return int(shape.size()); }
    // "bfloat16 [50, 720] with strides [768, 1] on cuda:0"
    std::string describe() const;
};

// `stream`: where the array will be used, for the producer to make that stream wait (DLPack), or
// kSameStream. Raises an input error that begins with `name` for what is no such array, for other
// memory than a GPU's, and for what no operator can take (dtypes without a name here, negative
// strides, addresses beyond 64 bits).
DeviceArray read_device_array(const py::object& x, const char* name, intptr_t stream);

}  // namespace smolvla::bindings

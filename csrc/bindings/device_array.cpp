#include "bindings/device_array.h"

#include <cstring>

#include "bindings/dlpack.h"
#include "bindings/engine.h"

namespace smolvla::bindings {
namespace {

constexpr int kMaxRank = 8;

std::string joined(const std::vector<int64_t>& numbers) {
    std::string text = "[";
    for (size_t i = 0; i < numbers.size(); ++i)
        text += (i ? ", " : "") + std::to_string(numbers[i]);
    return text + "]";
}

std::string type_of(const py::handle& x) { return py::str(py::type::of(x)).cast<std::string>(); }

// Calls what a library wrote. Its exceptions (torch: a tensor that requires grad) become ours.
template <class F>
auto ask(const char* name, const char* what, const F& f) {
    try {
        return f();
    } catch (const py::error_already_set& error) {
        if (!error.matches(PyExc_Exception)) throw;  // Ctrl-C is nobody's array
        fail(ErrorKind::input, "%s: %s of this array failed: %s", name, what, error.what());
    } catch (const py::cast_error&) {
        fail(ErrorKind::input, "%s: %s of this array gave values of a wrong type", name, what);
    }
}

std::vector<int64_t> compact(const std::vector<int64_t>& shape, const char* name) {
    std::vector<int64_t> strides(shape.size());
    int64_t step = 1;
    for (size_t i = shape.size(); i-- > 0;) {
        strides[i] = step;
        if (__builtin_mul_overflow(step, std::max<int64_t>(shape[i], 1), &step))
            fail(ErrorKind::input, "%s: %s elements are more than memory has", name,
                 joined(shape).c_str());
    }
    return strides;
}

// What holds for arrays of either protocol.
void check(const DeviceArray& a, const char* name) {
    int64_t last = 0;  // bytes from the first element to the last
    bool fits = true, empty = false;
    for (int i = 0; i < a.rank(); ++i) {
        if (a.shape[i] < 0)
            fail(ErrorKind::input, "%s: expected sizes of 0 or more, got shape %s", name,
                 joined(a.shape).c_str());
        empty = empty || a.shape[i] == 0;
        if (a.strides[i] < 0 && a.shape[i] > 1)
            fail(ErrorKind::input,
                 "%s: expected strides of 0 or more, got %s; make a contiguous copy", name,
                 joined(a.strides).c_str());
        int64_t bytes = 0;
        if (a.shape[i] > 1)
            fits = fits && !__builtin_mul_overflow(a.shape[i] - 1, a.strides[i], &bytes) &&
                   !__builtin_mul_overflow(bytes, int64_t{element_bytes(a.element)}, &bytes) &&
                   !__builtin_add_overflow(last, bytes, &last);
    }
    int64_t end = 0;
    const int64_t begin = int64_t(reinterpret_cast<uintptr_t>(a.data));
    if (!fits || __builtin_add_overflow(begin, last, &end) || begin < 0)
        fail(ErrorKind::input, "%s: shape %s with strides %s reaches beyond memory", name,
             joined(a.shape).c_str(), joined(a.strides).c_str());
    if (!a.data && !empty)
        fail(ErrorKind::input, "%s: expected an array with memory, got a null pointer", name);
}

// --- DLPack --------------------------------------------------------------------------------------

Element element_of(const dlpack::DataType& d, const char* name) {
    struct Row {
        uint8_t code, bits;
        Element element;
    };
    static constexpr Row rows[] = {
        {dlpack::kFloat, 32, Element::f32},  {dlpack::kBfloat, 16, Element::bf16},
        {dlpack::kFloat, 16, Element::f16},  {dlpack::kFloat, 64, Element::f64},
        {dlpack::kInt, 8, Element::i8},      {dlpack::kUInt, 8, Element::u8},
        {dlpack::kInt, 32, Element::i32},    {dlpack::kInt, 64, Element::i64},
        {dlpack::kBool, 8, Element::boolean}};
    for (const Row& row : rows)
        if (row.code == d.code && row.bits == d.bits && d.lanes == 1) return row.element;
    fail(ErrorKind::input,
         "%s: expected a dtype of float32, bfloat16 or integers, got DLPack's code %d of %d bits "
         "in %d lanes",
         name, d.code, d.bits, d.lanes);
}

Place place_of(int32_t type, const char* name) {
    switch (type) {
        case dlpack::kCuda: return Place::device;
        case dlpack::kCudaManaged: return Place::managed;
        case dlpack::kCudaHost: return Place::host;
        default: break;
    }
    fail(ErrorKind::input,
         "%s: expected an array in the memory of a CUDA GPU, got one %s; copy it there first", name,
         type == dlpack::kCpu ? "in the CPU's memory"
                              : ("on DLPack's device type " + std::to_string(type)).c_str());
}

void take(const dlpack::Tensor& t, const char* name, DeviceArray& a) {
    a.place = place_of(t.device.type, name);
    a.device = a.place == Place::host ? -1 : t.device.id;
    if (t.ndim < 0 || t.ndim > kMaxRank || (t.ndim > 0 && !t.shape))
        fail(ErrorKind::input, "%s: expected 0 to %d dimensions, got %d", name, kMaxRank, t.ndim);
    a.element = element_of(t.dtype, name);
    a.shape.assign(t.shape, t.shape + t.ndim);
    a.strides =
        t.strides ? std::vector<int64_t>(t.strides, t.strides + t.ndim) : compact(a.shape, name);
    a.data = t.data ? static_cast<char*>(t.data) + t.byte_offset : nullptr;
}

// From here on the capsule is nobody's: its deleter runs when the last owner is gone, once.
template <class Struct>
std::shared_ptr<void> take_over(PyObject* capsule, const char* used) {
    auto* managed = static_cast<Struct*>(PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule)));
    if (!managed || PyCapsule_SetName(capsule, used) != 0) throw py::error_already_set();
    return {managed, [](void* p) {
                auto* mine = static_cast<Struct*>(p);
                if (mine->deleter) mine->deleter(mine);
            }};
}

DeviceArray from_capsule(const py::object& capsule, const char* name) {
    const char* found =
        PyCapsule_CheckExact(capsule.ptr()) ? PyCapsule_GetName(capsule.ptr()) : nullptr;
    const std::string kind = found ? found : "";
    DeviceArray a;
    if (kind == dlpack::kVersionedCapsule) {
        const auto* versioned = static_cast<const dlpack::ManagedVersioned*>(
            PyCapsule_GetPointer(capsule.ptr(), found));
        // Of another major version nothing but the deleter has its place; the capsule calls it.
        if (versioned->version.major != dlpack::kMajor)
            fail(ErrorKind::input, "%s: expected DLPack of version %u, got %u.%u", name,
                 dlpack::kMajor, versioned->version.major, versioned->version.minor);
        a.owner = take_over<dlpack::ManagedVersioned>(capsule.ptr(), dlpack::kUsedVersionedCapsule);
        // What is written to a copy does not arrive.
        a.read_only = (versioned->flags & (dlpack::kReadOnly | dlpack::kIsCopied)) != 0;
        take(versioned->tensor, name, a);
    } else if (kind == dlpack::kCapsule) {
        a.owner = take_over<dlpack::Managed>(capsule.ptr(), dlpack::kUsedCapsule);
        take(static_cast<const dlpack::Managed*>(a.owner.get())->tensor, name, a);
    } else {
        fail(ErrorKind::input, "%s: expected __dlpack__ to give a fresh capsule, got %s", name,
             found ? kind.c_str() : type_of(capsule).c_str());
    }
    return a;
}

DeviceArray from_dlpack(const py::object& x, const char* name, intptr_t stream) {
    const auto device = ask(name, "__dlpack_device__", [&] {
        const py::tuple pair = x.attr("__dlpack_device__")();
        return py::int_(pair[0]).cast<int64_t>();
    });
    // Before asking for a capsule: of a CPU's array a stream is an error to some libraries.
    const bool host = place_of(int32_t(device), name) == Place::host;
    const py::object where = host ? py::object(py::none()) : py::object(py::int_(stream));
    const py::object capsule = ask(name, "__dlpack__", [&] {
        const py::object method = x.attr("__dlpack__");
        try {
            return py::object(method(py::arg("stream") = where,
                                     py::arg("max_version") = py::make_tuple(dlpack::kMajor, 0)));
        } catch (py::error_already_set& error) {
            if (!error.matches(PyExc_TypeError)) throw;  // older than versions
        }
        return py::object(method(py::arg("stream") = where));
    });
    return from_capsule(capsule, name);
}

// --- __cuda_array_interface__ --------------------------------------------------------------------

Element element_of(const std::string& typestr, const char* name) {
    static const std::pair<const char*, Element> rows[] = {
        {"<f4", Element::f32}, {"<f2", Element::f16},    {"<f8", Element::f64},
        {"|i1", Element::i8},  {"|u1", Element::u8},     {"<i4", Element::i32},
        {"<i8", Element::i64}, {"|b1", Element::boolean}};
    for (const auto& [text, element] : rows)
        if (typestr == text) return element;
    fail(ErrorKind::input,
         "%s: expected a dtype of float32 or integers, got %s of __cuda_array_interface__ "
         "(bfloat16 can be passed through __dlpack__ alone)",
         name, typestr.c_str());
}

DeviceArray from_interface(const py::object& x, const py::object& interface, const char* name) {
    DeviceArray a;
    ask(name, "__cuda_array_interface__", [&] {
        const py::dict d = interface.cast<py::dict>();
        const int version = d["version"].cast<int>();
        if (version < 2 || version > 3)
            fail(ErrorKind::input,
                 "%s: expected __cuda_array_interface__ of version 2 or 3, got %d", name, version);
        if (d.contains("mask") && !d["mask"].is_none())
            fail(ErrorKind::input, "%s: expected an array without a mask, got one with", name);
        const py::tuple data = d["data"].cast<py::tuple>();
        a.data = reinterpret_cast<void*>(data[0].cast<uintptr_t>());
        a.read_only = data[1].cast<bool>();
        a.element = element_of(d["typestr"].cast<std::string>(), name);
        for (const py::handle& size : d["shape"].cast<py::tuple>())
            a.shape.push_back(size.cast<int64_t>());
        if (a.rank() > kMaxRank)
            fail(ErrorKind::input, "%s: expected 0 to %d dimensions, got %d", name, kMaxRank,
                 a.rank());
        if (d.contains("strides") && !d["strides"].is_none()) {
            for (const py::handle& stride : d["strides"].cast<py::tuple>()) {
                const int64_t bytes = stride.cast<int64_t>();
                if (bytes % element_bytes(a.element) != 0)
                    fail(ErrorKind::input, "%s: expected strides of whole elements, got %lld bytes",
                         name, static_cast<long long>(bytes));
                a.strides.push_back(bytes / element_bytes(a.element));
            }
            if (a.strides.size() != a.shape.size())
                fail(ErrorKind::input, "%s: expected %d strides, got %zu", name, a.rank(),
                     a.strides.size());
        } else {
            a.strides = compact(a.shape, name);
        }
        if (d.contains("stream") && !d["stream"].is_none())
            a.producer_stream = d["stream"].cast<uintptr_t>();
        return true;
    });
    auto* kept = new py::object(x);
    a.owner = std::shared_ptr<void>(kept, [](void* p) { delete static_cast<py::object*>(p); });
    return a;
}

}  // namespace

const char* element_name(Element element) {
    static const char* const names[] = {"float32", "bfloat16", "float16", "float64", "int8",
                                        "uint8",   "int32",    "int64",   "bool"};
    return names[static_cast<int>(element)];
}

int element_bytes(Element element) {
    static constexpr int bytes[] = {4, 2, 2, 8, 1, 1, 4, 8, 1};
    return bytes[static_cast<int>(element)];
}

std::string DeviceArray::describe() const {
    std::string text = element_name(element);
    text += " " + joined(shape) + " with strides " + joined(strides);
    if (place == Place::host) return text + " in pinned host memory";
    return device < 0 ? text : text + " on cuda:" + std::to_string(device);
}

DeviceArray read_device_array(const py::object& x, const char* name, intptr_t stream) {
    DeviceArray a;
    if (py::hasattr(x, "__dlpack__") && py::hasattr(x, "__dlpack_device__")) {
        a = from_dlpack(x, name, stream);
    } else {
        const py::object interface =
            py::getattr(x, "__cuda_array_interface__", py::object(py::none()));
        if (interface.is_none())
            fail(ErrorKind::input,
                 "%s: expected an array with __dlpack__ or __cuda_array_interface__ (torch, CuPy), "
                 "got %s",
                 name, type_of(x).c_str());
        a = from_interface(x, interface, name);
    }
    check(a, name);
    return a;
}

}  // namespace smolvla::bindings

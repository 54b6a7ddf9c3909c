// numpy arrays in and out, without silent copies: a wrong dtype, rank or stride is an input error
// that names what came.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/error.h"

namespace smolvla::bindings {

namespace py = pybind11;

inline bool is_aligned(const py::array& a) {
    return (a.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
}

inline std::string describe(const py::array& a) {
    std::string text = py::str(a.dtype()).cast<std::string>() + " [";
    for (py::ssize_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
    if (!(a.flags() & py::array::c_style)) return text + "] (not contiguous)";
    return text + (is_aligned(a) ? "]" : "] (not aligned; copy it)");
}

// The data of a C-contiguous array of exactly this element type and shape; -1 allows any size.
template <class T>
const T* data_of(const py::object& object, const char* name,
                 const std::vector<py::ssize_t>& shape) {
    if (!py::isinstance<py::array>(object))
        fail(ErrorKind::input, "%s: expected a numpy array, got %s", name,
             py::str(py::type::of(object)).cast<std::string>().c_str());
    const py::array a = py::reinterpret_borrow<py::array>(object);
    bool fits = py::isinstance<py::array_t<T>>(a) && a.ndim() == py::ssize_t(shape.size()) &&
                (a.flags() & py::array::c_style) && is_aligned(a);
    std::string wanted = py::str(py::dtype::of<T>()).cast<std::string>() + " [";
    for (size_t i = 0; i < shape.size(); ++i) {
        wanted += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
        fits = fits && (shape[i] < 0 || a.shape(py::ssize_t(i)) == shape[i]);
    }
    if (!fits)
        fail(ErrorKind::input, "%s: expected contiguous %s], got %s", name, wanted.c_str(),
             describe(a).c_str());
    return static_cast<const T*>(a.data());
}

// The same for writing.
template <class T>
T* mutable_data_of(const py::object& object, const char* name,
                   const std::vector<py::ssize_t>& shape) {
    const T* data = data_of<T>(object, name, shape);
    if (!py::reinterpret_borrow<py::array>(object).writeable())
        fail(ErrorKind::input, "%s: expected a writeable array, got a read-only one", name);
    return const_cast<T*>(data);
}

// numpy's booleans may hold any byte, a C++ bool may not: 0 is false.
inline const uint8_t* mask_of(const py::object& object, const char* name, py::ssize_t size) {
    return reinterpret_cast<const uint8_t*>(data_of<bool>(object, name, {size}));
}

// A dimension of an array that data_of has accepted, as the core counts.
inline int dim(const py::object& array, int axis) {
    const py::ssize_t size = py::reinterpret_borrow<py::array>(array).shape(axis);
    if (size > INT32_MAX)
        fail(ErrorKind::input, "dimension %d of an array: expected at most %d, got %zd", axis,
             INT32_MAX, size);
    return static_cast<int>(size);
}

}  // namespace smolvla::bindings

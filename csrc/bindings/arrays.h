// numpy arrays in and out, without silent copies: a wrong dtype, rank or stride is an input error
// that names what came.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "runtime/error.h"

namespace smolvla::bindings {

namespace py = pybind11;

inline std::string describe(const py::array& a) {
    std::string text = py::str(a.dtype()).cast<std::string>() + " [";
    for (py::ssize_t i = 0; i < a.ndim(); ++i) text += (i ? ", " : "") + std::to_string(a.shape(i));
    return text + "]" + ((a.flags() & py::array::c_style) ? "" : " (not contiguous)");
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
                (a.flags() & py::array::c_style);
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

inline py::ssize_t dim(const py::object& array, int axis) {
    return py::reinterpret_borrow<py::array>(array).shape(axis);
}

}  // namespace smolvla::bindings

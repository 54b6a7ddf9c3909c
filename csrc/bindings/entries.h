// Entries of a dict from Python, with typed errors.
#pragma once

#include <pybind11/stl.h>

#include <string>

#include "bindings/arrays.h"
#include "runtime/error.h"

namespace smolvla::bindings {

// What the entries of a dict are part of, for errors.
struct Source {
    ErrorKind kind;
    const char* name;
};

inline py::dict dict_of(const py::object& object, const Source& source) {
    if (!py::isinstance<py::dict>(object))
        fail(source.kind, "%s: expected a dict, got %s", source.name,
             py::str(py::type::of(object)).cast<std::string>().c_str());
    return py::reinterpret_borrow<py::dict>(object);
}

template <class T>
void take(const py::dict& dict, const char* name, T& field, const Source& source) {
    if (!dict.contains(name)) fail(source.kind, "%s lacks %s", source.name, name);
    try {
        field = dict[name].cast<T>();
    } catch (const py::cast_error&) {
        fail(source.kind, "%s: %s = %s has a wrong type", source.name, name,
             py::str(dict[name]).cast<std::string>().c_str());
    }
}

}  // namespace smolvla::bindings

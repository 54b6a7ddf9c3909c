// Classes whose methods may only meet objects that __init__ has made.
//
// Python can make an object and skip __init__ (Engine.__new__(Engine)). pybind11 then lets the
// first method called on it have fresh memory from the class's own operator new, as if an object
// were in it. A class derived from MadeByInit refuses there; `make` goes around it.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "runtime/error.h"

namespace smolvla::bindings {

struct MadeByInit {
    static void* operator new(size_t) {
        fail(ErrorKind::backend,
             "expected an object made by calling its class, got one whose __init__ never ran");
    }
};

template <class T, class... Arguments>
std::unique_ptr<T> make(Arguments&&... arguments) {
    return std::unique_ptr<T>(::new T(std::forward<Arguments>(arguments)...));
}

}  // namespace smolvla::bindings

// The GIL around a long call.
//
// Python before 3.14 ends a daemon thread that asks for the GIL while the interpreter shuts down
// with pthread_exit, and that unwinding must not leave a destructor: pybind11's own guards then
// abort the process. A robot's control loop is often such a thread, so here it sleeps instead until
// the process is gone.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

namespace smolvla::bindings {

[[noreturn]] inline void sleep_until_exit() {
    for (;;) pause();
}

class GilRelease {
public:
    GilRelease() : state_(PyEval_SaveThread()) {}
    ~GilRelease() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            sleep_until_exit();
        }
    }
    GilRelease(const GilRelease&) = delete;
    GilRelease& operator=(const GilRelease&) = delete;

private:
    PyThreadState* const state_;
};

// Called without the GIL; raises KeyboardInterrupt after Ctrl-C.
inline void check_signals() {
    try {
        pybind11::gil_scoped_acquire acquire;
        if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    } catch (abi::__forced_unwind&) {
        sleep_until_exit();
    }
}

}  // namespace smolvla::bindings

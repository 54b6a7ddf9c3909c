// The one exception type of the C++ core. The bindings turn `kind` into the Python class of the
// same name in smolvla_edge/errors.py. Kernels never throw; checks happen before they are called.
#pragma once

#include <cstdarg>
#include <stdexcept>
#include <string>

namespace smolvla {

enum class ErrorKind { checkpoint, input, backend, non_finite };

class Error : public std::runtime_error {
public:
    Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind(kind) {}
    const ErrorKind kind;
};

// printf-style construction keeps the numbers in the message: "expected [50, 32], got [49, 32]".
[[noreturn, gnu::format(printf, 2, 3)]] void fail(ErrorKind kind, const char* format, ...);

}  // namespace smolvla

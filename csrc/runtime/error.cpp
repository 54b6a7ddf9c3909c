#include "runtime/error.h"

#include <cstdio>

namespace smolvla {

void fail(ErrorKind kind, const char* format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    const int length = std::vsnprintf(nullptr, 0, format, args);
    va_end(args);
    std::string text(length > 0 ? static_cast<size_t>(length) : 0, '\0');
    std::vsnprintf(text.data(), text.size() + 1, format, again);
    va_end(again);
    throw Error(kind, text);
}

}  // namespace smolvla

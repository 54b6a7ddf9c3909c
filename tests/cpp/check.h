// A test is a function; CHECK counts. No framework: four small programs under ctest need none.
#pragma once

#include <cstdio>

#include "runtime/error.h"

inline int failures = 0;

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            ++failures;                                                         \
            std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
        }                                                                       \
    } while (0)

#define CHECK_THROWS(expression, error_kind)                                              \
    do {                                                                                  \
        bool thrown = false;                                                              \
        try {                                                                             \
            (void)(expression);                                                           \
        } catch (const smolvla::Error& e) {                                               \
            thrown = e.kind == smolvla::ErrorKind::error_kind;                            \
        }                                                                                 \
        if (!thrown) {                                                                    \
            ++failures;                                                                   \
            std::printf("%s:%d: no %s error from: %s\n", __FILE__, __LINE__, #error_kind, \
                        #expression);                                                     \
        }                                                                                 \
    } while (0)

inline int report(const char* name) {
    std::printf("%s: %s\n", name, failures ? "FAILED" : "ok");
    return failures ? 1 : 0;
}

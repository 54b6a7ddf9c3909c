// A test is a function; CHECK counts. No framework: four small programs under ctest need none.
#pragma once

#include <cstdio>
#include <string>

#include "cpu/isa.h"
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

// Every ISA of this build that this CPU can run.
inline std::vector<std::string> runnable_isas() {
    std::vector<std::string> isas;
    for (const char* isa : {"scalar", "avx512", "avx512_bf16"}) {
        try {
            smolvla::cpu::choose_kernels(isa);
            isas.push_back(isa);
        } catch (const smolvla::Error&) {
            std::printf("(this CPU or build cannot run %s)\n", isa);
        }
    }
    return isas;
}

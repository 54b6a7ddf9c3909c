#include "operations.h"

#include <cstdio>

namespace smolvla {
namespace {

constexpr size_t kArena = size_t(64) << 20;  // reserved, not touched

}  // namespace

void Judge::require(bool condition, const std::string& what) {
    if (condition) return;
    ++wrong;
    if (say_) std::printf("failed: %s\n", what.c_str());
}

void Judge::hold(const std::vector<float>& got, const std::vector<Bound>& bounds,
                 const std::string& what) {
    require(got.size() == bounds.size(), what + ": the test itself has another number of bounds");
    for (size_t i = 0; i < got.size() && i < bounds.size(); ++i) {
        const Bound& b = bounds[i];
        if (std::isnan(b.value) || std::fabs(got[i] - b.value) <= b.allowed) continue;
        char text[200];
        std::snprintf(text, sizeof text, ", result %zu: %.9g, expected %.9g within %.2g", i, got[i],
                      b.value, b.allowed);
        return require(false, what + text);
    }
}

void Judge::run(const std::string& what, Compute compute, const std::vector<Bound>& bounds,
                const Operation& operation) {
    const std::string in = " in " + std::string(compute_name(compute));
    std::vector<float> reference;
    {
        const auto scalar = cpu::make_backend(kArena, kArena, 1, cpu::scalar::kernels, compute);
        reference = operation(*scalar);
        hold(reference, bounds, what + in + ", reference");
    }
    for (const Variant& v : variants_) {
        std::vector<float> alone;  // with one thread
        for (int threads : {1, 2}) {
            const std::string at =
                what + in + ", " + v.name + ", threads " + std::to_string(threads);
            const auto backend = cpu::make_backend(kArena, kArena, threads, v.kernels, compute);
            const std::vector<float> got = operation(*backend);
            if (threads == 1) alone = got;
            require(got == alone, at + ": the threads change a result");
            if (v.exact)
                require(got == reference, at + ": not the bits of the reference");
            else
                hold(got, bounds, at);
        }
    }
}

}  // namespace smolvla

// What the activation of a linear layer does to a result and its bound.
#pragma once

#include "loose.h"

namespace smolvla {

inline double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

// The bound of an activation with slopes of at most 1.13 and, in the exact form, 16 roundings of
// its own (exponential and division); an exponential for bfloat16 adds its error.
inline Bound activate(const Bound& v, Activation a, bool coarse) {
    if (a == Activation::none) return v;
    const double x = v.value;
    const double z =
        a == Activation::silu ? x : 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
    const double value = x * sigmoid(z);
    return {value, 1.13 * v.allowed + 16 * kEps * (1 + std::fabs(x)) +
                       (coarse ? kCoarseExp * std::fabs(value) : 0)};
}

// The rows that are worked out in double precision: all of a few, some of many.
inline bool sampled(int row, int rows) {
    return rows <= 16 || row < 3 || row >= rows - 2 || row % 37 == 0;
}

}  // namespace smolvla

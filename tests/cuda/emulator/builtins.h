// threadIdx and its kin: of the fiber that runs now.
#pragma once

#include "vector_types.h"

inline thread_local uint3 threadIdx{};
inline thread_local uint3 blockIdx{};
inline thread_local dim3 blockDim{};
inline thread_local dim3 gridDim{};
constexpr int warpSize = 32;

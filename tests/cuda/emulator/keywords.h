// CUDA's words as a C++ compiler may read them. __shared__ is left out on purpose: dynamic shared
// memory through shared_memory<T>() (csrc/cuda/device.h) is the only kind that the emulator guards.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__

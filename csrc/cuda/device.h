// What every .cu file includes first: CUDA, or the emulator that runs kernels on the CPU in tests
// (SMOLVLA_CUDA_EMULATED; tests/cuda/README.md). Sources stay the same for both, so:
//
// - kernels are started by launch(), never by <<< >>>;
// - shared memory is dynamic, through shared_memory<T>(), never a __shared__ variable;
// - what PTX does, ptx.h wraps.
//
// Valid for nvcc 12.2 to 13.x and every architecture from sm_80 on.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(SMOLVLA_CUDA_EMULATED)
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace smolvla::cuda {

// The dynamic shared memory of the block, 16-byte aligned. Every T sees the same bytes.
template <class T>
__device__ __forceinline__ T* shared_memory() {
#if defined(SMOLVLA_CUDA_EMULATED)
    return reinterpret_cast<T*>(emulator::shared_begin());
#else
    extern __shared__ uint4 smolvla_shared_words[];
    return reinterpret_cast<T*>(smolvla_shared_words);
#endif
}

struct Launch {
    dim3 grid, block;
    size_t shared_bytes = 0;  // above 48 KB: allow_shared_memory(kernel, bytes) once before
    cudaStream_t stream = nullptr;
};

#if defined(SMOLVLA_CUDA_EMULATED)

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const Launch& how, A... arguments) {
    static_assert(sizeof...(P) == sizeof...(A), "a kernel takes all of its arguments");
    return emulator::launch_kernel(kernel, how.grid, how.block, how.shared_bytes, how.stream,
                                   static_cast<P>(arguments)...);
}

#else

namespace detail {
template <class... P>
cudaError_t launch_typed(void (*kernel)(P...), const Launch& how, P... arguments) {
    void* pointers[sizeof...(P) + 1] = {const_cast<void*>(static_cast<const void*>(&arguments))...,
                                        nullptr};
    return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), how.grid, how.block, pointers,
                            how.shared_bytes, how.stream);
}
}  // namespace detail

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const Launch& how, A... arguments) {
    static_assert(sizeof...(P) == sizeof...(A), "a kernel takes all of its arguments");
    return detail::launch_typed<P...>(kernel, how, static_cast<P>(arguments)...);
}

#endif

// Once for a kernel, outside of captures; cudaErrorInvalidValue when the device has less.
template <class... P>
cudaError_t allow_shared_memory(void (*kernel)(P...), int bytes) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

}  // namespace smolvla::cuda

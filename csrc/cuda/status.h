// CUDA's error codes as the core's one exception.
#pragma once

#include "cuda/device.h"
#include "runtime/error.h"

namespace smolvla::cuda {

inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // a failed launch must not fail the next call too
    if (status == cudaErrorMemoryAllocation)
        fail(ErrorKind::backend,
             "%s: the GPU has not enough free memory. Close what else uses it, or use a bundle of "
             "fewer bits (smolvla-edge quantize)",
             what);
    fail(ErrorKind::backend, "%s: CUDA says %s", what, cudaGetErrorString(status));
}

}  // namespace smolvla::cuda

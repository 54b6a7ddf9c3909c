// The operations of ops/ops.h on a GPU.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace smolvla {

// Arithmetic in float32 (exact: no TF32), or in bfloat16 with float32 sums. On the GPU that is the
// calling thread's current one: the first that CUDA_VISIBLE_DEVICES leaves, unless another library
// chose. Raises a backend error without a driver, a GPU that this build has kernels for, or memory.
// Weights and buffers are allocated while an engine is built; stages are recorded as CUDA graphs by
// Engine::warm_up, else when they first run.
std::unique_ptr<Backend> make_cuda_backend(Compute compute, size_t host_weight_bytes);

struct CudaDevice {
    std::string name;
    int sm;  // compute capability: 87 is 8.7
    size_t memory_bytes;
    bool integrated;  // shares the host's memory, as on a Jetson
};

// What this build was compiled for, and what it meets here. Asking starts no work on a GPU.
struct CudaStatus {
    bool emulated;                   // runs on the CPU, for tests
    std::vector<int> architectures;  // that there is machine code for; none when emulated
    std::string driver;              // the newest CUDA that the driver runs, as in 12.6; or empty
    std::vector<CudaDevice> devices;
    std::string error;  // why make_cuda_backend would refuse, and what to do; or empty
};
CudaStatus cuda_status();

}  // namespace smolvla

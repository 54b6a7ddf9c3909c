// The GPU that a thread works on, changed for a while without touching any other: a context takes
// hundreds of megabytes of a GPU, and where several are shared the first may be somebody else's.
#pragma once

#include "cuda/device.h"

namespace smolvla::cuda {

// Makes a GPU current, and in the end what was current before. Never throws: destructors use it.
class CurrentGpu {
public:
    explicit CurrentGpu(int gpu);
    ~CurrentGpu();
    CurrentGpu(const CurrentGpu&) = delete;
    CurrentGpu& operator=(const CurrentGpu&) = delete;
    // Why the GPU is not current, if it is not.
    cudaError_t status() const { return status_; }

private:
    const int gpu_;
    bool pushed_ = false;
    cudaError_t status_;
};

// Whose memory an address is: a GPU's number or one of these.
constexpr int kPinned = -1, kUnknown = -2;
cudaError_t owner_of(const void* address, int* owner);

}  // namespace smolvla::cuda

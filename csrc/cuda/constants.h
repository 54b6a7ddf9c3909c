// What a model keeps beside its matrices: filled and looked at by the host, read by kernels.
#pragma once

#include <vector>

#include "cuda/memory.h"
#include "runtime/arena.h"

namespace smolvla::cuda {

class Constants {
public:
    // With room for so many bytes on the host.
    explicit Constants(size_t bytes) : host_(bytes) {}

    // Zeroed, the host's; from upload() on the device has a copy.
    float* make(size_t count) { return host_.floats(count); }
    // The host's alone.
    float* make_for_host(size_t count);
    void upload(DeviceMemory& memory);
    // The device's address of a constant; another address as it is.
    const float* on_device(const float* address) const;

private:
    Arena host_;
    char* device_ = nullptr;  // as `host_` lies
    std::vector<std::vector<float>> for_host_;
};

}  // namespace smolvla::cuda

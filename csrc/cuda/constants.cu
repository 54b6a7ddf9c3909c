#include "cuda/constants.h"

#include "cuda/status.h"

namespace smolvla::cuda {

float* Constants::make_for_host(size_t count) {
    for_host_.emplace_back(count);
    return for_host_.back().data();
}

void Constants::upload(DeviceMemory& memory) {
    const size_t bytes = host_.used_bytes();
    device_ = static_cast<char*>(memory.allocate(bytes, "constants"));
    check(cudaMemcpy(device_, host_.image(), bytes, cudaMemcpyHostToDevice), "copying constants");
    // A copy returns when the host's memory was read; our stream would not wait for the rest.
    check(cudaStreamSynchronize(nullptr), "copying weights");
}

const float* Constants::on_device(const float* address) const {
    const char* at = reinterpret_cast<const char*>(address);
    const char* base = host_.image();
    const bool constant = at >= base && at < base + host_.used_bytes();
    return constant ? reinterpret_cast<const float*>(device_ + (at - base)) : address;
}

}  // namespace smolvla::cuda

#include "cuda/memory.h"

#include <algorithm>

#include "cuda/status.h"

namespace smolvla::cuda {

// Of staging: more than a call copies beside its frames.
constexpr size_t kLeast = size_t{16} << 20;

DeviceMemory::~DeviceMemory() {
    for (void* block : blocks_) cudaFree(block);
}

void* DeviceMemory::allocate(size_t bytes, const char* what) {
    bytes = (std::max(bytes, size_t{1}) + 255) / 256 * 256;
    void* block = nullptr;
    check(cudaMalloc(&block, bytes), what);
    blocks_.push_back(block);
    used_ += bytes;
    // The zeros are written later, and streams that do not block would not wait for them.
    check(cudaMemset(block, 0, bytes), what);
    check(cudaStreamSynchronize(nullptr), what);
    return block;
}

void* Scratch::room(size_t bytes, const char* what) {
    if (bytes > bytes_) {
        data_ = memory_.allocate(bytes, what);
        bytes_ = bytes;
    }
    return data_;
}

Staging::~Staging() {
    if (base_) cudaFreeHost(base_);
}

void Staging::reserve(size_t bytes) {
    if (bytes <= capacity_) return;
    check(cudaStreamSynchronize(stream_), "waiting for copies");
    used_ = capacity_ = 0;
    if (base_) check(cudaFreeHost(base_), "giving host memory back");
    base_ = nullptr;
    void* made = nullptr;
    check(cudaMallocHost(&made, bytes), "pinning host memory");
    base_ = static_cast<char*>(made);
    capacity_ = bytes;
}

void* Staging::room(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (bytes > capacity_ - used_) {
        check(cudaStreamSynchronize(stream_), "waiting for copies");
        used_ = 0;
        reserve(std::max(bytes, kLeast));
    }
    char* found = base_ + used_;
    used_ += bytes;
    return found;
}

}  // namespace smolvla::cuda

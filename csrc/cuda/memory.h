// Device memory of one backend, and how numbers get into it and out.
#pragma once

#include <atomic>
#include <vector>

#include "cuda/device.h"

namespace smolvla::cuda {

// Blocks that live as long as this does.
class DeviceMemory {
public:
    DeviceMemory() = default;
    ~DeviceMemory();
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;

    // Zeroed, 256-byte aligned. Raises a backend error that names `what` when there is no room.
    void* allocate(size_t bytes, const char* what);
    size_t used_bytes() const { return used_; }

private:
    std::vector<void*> blocks_;
    std::atomic<size_t> used_{0};  // asked for while a call runs
};

// One block that grows: what it held is lost then, and the smaller one stays where it was, because
// recorded stages know its address.
class Scratch {
public:
    explicit Scratch(DeviceMemory& memory) : memory_(memory) {}
    void* room(size_t bytes, const char* what);

private:
    DeviceMemory& memory_;
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

// Pinned host memory through which copies pass, so that the caller's memory is free at once and the
// copy engine needs no help from the driver.
class Staging {
public:
    explicit Staging(cudaStream_t stream) : stream_(stream) {}
    ~Staging();
    Staging(const Staging&) = delete;
    Staging& operator=(const Staging&) = delete;

    // Room for bytes that a copy on the stream will read; stays untouched until the stream got
    // there.
    void* room(size_t bytes);
    // So much room for what one call copies, so that it neither waits nor allocates.
    void reserve(size_t bytes);
    // Everything on the stream is done: all room is free again.
    void drained() { used_ = 0; }
    size_t bytes() const { return capacity_; }

private:
    const cudaStream_t stream_;
    char* base_ = nullptr;
    std::atomic<size_t> capacity_{0};  // asked for while a call runs
    size_t used_ = 0;
};

}  // namespace smolvla::cuda

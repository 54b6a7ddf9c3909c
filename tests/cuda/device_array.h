// What tests of kernels share: CHECK of tests/cpp, device memory that frees itself, and the orders
// in which a kernel must give the same bytes.
#pragma once

#include <cstring>
#include <vector>

#include "check.h"
#include "control.h"
#include "cuda/device.h"

// Poison until it is filled; read() waits for the device.
template <class T>
class DeviceArray {
public:
    explicit DeviceArray(size_t count) : count_(count) { CHECK(!cudaMalloc(&data_, bytes())); }
    explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
        CHECK(!cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice));
    }
    ~DeviceArray() { cudaFree(data_); }
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;

    T* data() { return data_; }
    size_t bytes() const { return count_ * sizeof(T); }
    std::vector<T> read() const {
        std::vector<T> values(count_);
        CHECK(!cudaDeviceSynchronize());
        CHECK(!cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost));
        return values;
    }

private:
    T* data_ = nullptr;
    size_t count_;
};

// Runs `test` in order of number and in several shuffled orders.
template <class Test>
void in_every_order(Test test) {
    for (uint32_t seed : {0u, 1u, 2u, 3u}) {
        emulator::options().seed = seed;
        test();
    }
    emulator::options().seed = 0;
}

// What `run` faults with; nothing when it does not.
template <class Run>
std::string fault_of(Run run) {
    try {
        run();
        cudaDeviceSynchronize();
    } catch (const emulator::KernelError& error) {
        return error.what();
    }
    return {};
}

inline bool contains(const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
}

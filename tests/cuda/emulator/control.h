// What a test may turn: the order in which things run, the device that is played, what goes wrong.
// Only tests include this; kernels and the backend see CUDA alone.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "vector_types.h"

namespace emulator {

// What a kernel did that no GPU promises to survive. Thrown out of the launch (or, when work is
// deferred, out of the call that waits for it).
enum class Fault {
    divergence,     // lanes of a warp wait at different operations, or never arrive at one
    misaligned,     // cp.async, ldmatrix
    out_of_bounds,  // of shared memory (of global memory: AddressSanitizer)
    host_misuse,    // a call that real code may not make
};
const char* fault_name(Fault fault);

class KernelError : public std::runtime_error {
public:
    KernelError(Fault fault, const std::string& kernel, uint3 block, int thread,
                const std::string& what);
    const Fault fault;
    const std::string kernel;
    const uint3 block;
    const int thread;  // in the block, x fastest; -1: none in particular
};

struct Options {
    // 0: blocks, warps and lanes run in order. Else they run in an order of this number's making,
    // and warps take turns in the middle, so that a missing barrier changes the result.
    uint32_t seed = 0;
    // Work waits in its stream until something waits for it, as it may on a device: a host that
    // reads too early reads poison.
    bool deferred = false;
    // Memory of cudaMalloc is unreadable to the host outside of kernels and copies (SIGSEGV).
    bool protect_device_memory = false;
};
Options& options();

struct DeviceModel {
    const char* name;
    int major, minor, multiprocessors;
    int shared_per_block, shared_per_multiprocessor;  // bytes; the first with opt-in
    int threads_per_multiprocessor, blocks_per_multiprocessor;
    int l2_bytes;
    bool integrated;
    size_t memory_bytes;
};
// 80, 87, 89, 90, 100, 110 or 120. 89 is played until this is called.
void use_device(int architecture);
const DeviceModel& device_model();
// So many of the device that is played; every thread begins with number 0 as its current one.
void use_devices(int count);
// Whether anything since use_devices() took a context of that device, which costs its memory.
bool opened(int device);
// cudaGetDeviceCount then says 35 (no driver).
void remove_device(bool removed);

// The n-th cudaMalloc, cudaMallocHost or cudaHostAlloc from now fails (1: the next); 0: none.
void fail_allocation(int nth);
size_t device_bytes_in_use();
size_t device_bytes_on(int device);
size_t allocations_in_use();  // device and pinned host
size_t handles_in_use();      // streams, graphs (prepared ones too) and retained contexts

// Counted since the program began: what ran.
struct Counters {
    uint64_t kernels, graph_launches, copies;
};
Counters counters();

}  // namespace emulator

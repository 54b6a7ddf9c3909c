// The device that is played, and errors.
#include <cstring>
#include <utility>

#include "counters.h"
#include "fiber.h"
#include "streams.h"

namespace emulator {

namespace {

constexpr int kKb = 1024;
// shared memory: as NVIDIA's compute capability table has it; the machines: representative ones.
const DeviceModel kDevices[] = {
    {"emulated A100 (sm_80)", 8, 0, 108, 163 * kKb, 164 * kKb, 2048, 32, 40 << 20, false,
     40ul << 30},
    {"emulated Orin (sm_87)", 8, 7, 16, 163 * kKb, 164 * kKb, 1536, 16, 4 << 20, true, 32ul << 30},
    {"emulated RTX 4090 (sm_89)", 8, 9, 128, 99 * kKb, 100 * kKb, 1536, 24, 72 << 20, false,
     24ul << 30},
    {"emulated H200 (sm_90)", 9, 0, 132, 227 * kKb, 228 * kKb, 2048, 32, 50 << 20, false,
     141ul << 30},
    {"emulated B200 (sm_100)", 10, 0, 148, 227 * kKb, 228 * kKb, 2048, 32, 126 << 20, false,
     180ul << 30},
    {"emulated Thor (sm_110)", 11, 0, 20, 227 * kKb, 228 * kKb, 1536, 24, 32 << 20, true,
     128ul << 30},
    {"emulated RTX 5090 (sm_120)", 12, 0, 170, 99 * kKb, 100 * kKb, 1536, 24, 96 << 20, false,
     32ul << 30},
};

DeviceModel played = kDevices[2];
bool removed = false;
thread_local cudaError_t last_error = cudaSuccess;

}  // namespace

bool no_device() { return removed; }

Options& options() {
    static Options all;
    return all;
}

const DeviceModel& device_model() { return played; }

void use_device(int architecture) {
    for (const DeviceModel& device : kDevices) {
        if (device.major * 10 + device.minor != architecture) continue;
        played = device;
        return;
    }
    throw KernelError(Fault::host_misuse, "", {}, -1,
                      "no device of architecture " + std::to_string(architecture));
}

void remove_device(bool is_removed) { removed = is_removed; }
Counters counters() { return {counted.kernels, counted.graph_launches, counted.copies}; }

const char* fault_name(Fault fault) {
    switch (fault) {
        case Fault::divergence: return "divergence";
        case Fault::misaligned: return "misaligned address";
        case Fault::out_of_bounds: return "out of bounds";
        case Fault::host_misuse: return "host misuse";
    }
    return "";
}

KernelError::KernelError(Fault fault, const std::string& kernel, uint3 block, int thread,
                         const std::string& what)
    : std::runtime_error(std::string(fault_name(fault)) +
                         (kernel.empty()
                              ? ""
                              : " in " + kernel + ", block (" + std::to_string(block.x) + ", " +
                                    std::to_string(block.y) + ", " + std::to_string(block.z) + ")" +
                                    (thread < 0 ? "" : ", thread " + std::to_string(thread))) +
                         ": " + what),
      fault(fault),
      kernel(kernel),
      block(block),
      thread(thread) {}

cudaError_t keep(cudaError_t error) { return last_error = error; }

}  // namespace emulator

using namespace emulator;

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
        case cudaErrorInvalidMemcpyDirection: return "cudaErrorInvalidMemcpyDirection";
        case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
        case cudaErrorNoDevice: return "cudaErrorNoDevice";
        case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
        case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
        case cudaErrorNotReady: return "cudaErrorNotReady";
        case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
        case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
        case cudaErrorNotSupported: return "cudaErrorNotSupported";
        case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
        case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
        case cudaErrorStreamCaptureUnmatched: return "cudaErrorStreamCaptureUnmatched";
        case cudaErrorStreamCaptureUnjoined: return "cudaErrorStreamCaptureUnjoined";
        case cudaErrorUnknown: return "cudaErrorUnknown";
    }
    return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    if (no_device()) return keep(cudaErrorInsufficientDriver);
    int count = 0;
    cudaGetDeviceCount(&count);
    if (device < 0 || device >= count) return keep(cudaErrorInvalidDevice);
    *p = {};
    std::strncpy(p->name, played.name, sizeof p->name - 1);
    p->totalGlobalMem = played.memory_bytes;
    p->sharedMemPerBlock = 48 * kKb;
    p->sharedMemPerBlockOptin = size_t(played.shared_per_block);
    p->sharedMemPerMultiprocessor = size_t(played.shared_per_multiprocessor);
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = played.threads_per_multiprocessor;
    p->maxBlocksPerMultiProcessor = played.blocks_per_multiprocessor;
    p->multiProcessorCount = played.multiprocessors;
    p->major = played.major;
    p->minor = played.minor;
    p->l2CacheSize = played.l2_bytes;
    p->persistingL2CacheMaxSize = played.l2_bytes / 4 * 3;
    p->integrated = played.integrated;
    p->canMapHostMemory = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    if (cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = int(p.sharedMemPerBlock); break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
        case cudaDevAttrIntegrated: *value = p.integrated; break;
        case cudaDevAttrCanMapHostMemory: *value = p.canMapHostMemory; break;
        case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
        case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = int(p.sharedMemPerMultiprocessor);
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = int(p.sharedMemPerBlockOptin); break;
    }
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = no_device() ? 0 : 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = 13000;
    return cudaSuccess;
}

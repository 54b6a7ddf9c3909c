#include "contexts.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "streams.h"

namespace emulator {

namespace {

int device_count = 1;
std::atomic<uint64_t> opened_devices{0};  // bit by bit
std::atomic<int> retained{0};
thread_local int chosen = 0;             // what a thread without a context works on
thread_local std::vector<int> contexts;  // of this thread, as device numbers; the last is current

bool is_device(int device) { return device >= 0 && device < device_count; }
void open(int device) { opened_devices |= uint64_t{1} << device; }
// Numbered from 1, so that none is null.
CUcontext context_of(int device) { return reinterpret_cast<CUcontext>(intptr_t{device} + 1); }
int device_of(CUcontext context) { return int(reinterpret_cast<intptr_t>(context)) - 1; }

}  // namespace

void use_devices(int count) {
    device_count = count;
    opened_devices = 0;
}
bool opened(int device) { return opened_devices >> device & 1; }
size_t retained_contexts() { return size_t(retained); }
int current_device() { return contexts.empty() ? chosen : contexts.back(); }

void open_current() {
    if (contexts.empty()) contexts.push_back(chosen);
    open(contexts.back());
}

}  // namespace emulator

using namespace emulator;

cudaError_t cudaGetDeviceCount(int* count) {
    *count = no_device() ? 0 : device_count;
    return no_device() ? keep(cudaErrorInsufficientDriver) : cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = current_device();
    return no_device() ? keep(cudaErrorInsufficientDriver) : cudaSuccess;
}
// Since CUDA 12 it opens the device at once, before anything is asked of it.
cudaError_t cudaSetDevice(int device) {
    if (no_device()) return keep(cudaErrorInsufficientDriver);
    if (!is_device(device)) return keep(cudaErrorInvalidDevice);
    chosen = device;
    if (!contexts.empty()) contexts.pop_back();
    contexts.push_back(device);
    open(device);
    return cudaSuccess;
}

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    open(device);
    ++retained;
    *context = context_of(device);
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    --retained;
    return CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent(CUcontext context) {
    if (!is_device(device_of(context))) return CUDA_ERROR_INVALID_CONTEXT;
    contexts.push_back(device_of(context));
    return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent(CUcontext* context) {
    if (contexts.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    *context = context_of(contexts.back());
    contexts.pop_back();
    return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
    int device = current_device();
    Place place;
    locate(reinterpret_cast<const void*>(pointer), 1, &place, &device);
    const CUmemorytype type = place == Place::pinned ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
    switch (attribute) {
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: std::memcpy(value, &type, sizeof type); break;
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: std::memcpy(value, &device, sizeof device);
    }
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
    const auto at = [](auto* f) { return reinterpret_cast<void*>(f); };
    const std::pair<const char*, void*> entries[] = {
        {"cuInit", at(cuInit)},
        {"cuDevicePrimaryCtxRetain", at(cuDevicePrimaryCtxRetain)},
        {"cuDevicePrimaryCtxRelease", at(cuDevicePrimaryCtxRelease)},
        {"cuCtxPushCurrent", at(cuCtxPushCurrent)},
        {"cuCtxPopCurrent", at(cuCtxPopCurrent)},
        {"cuPointerGetAttribute", at(cuPointerGetAttribute)}};
    *function = nullptr;
    *found = cudaDriverEntryPointSymbolNotFound;
    for (const auto& [name, entry] : entries) {
        if (std::strcmp(name, symbol) != 0) continue;
        *function = entry;
        *found = cudaDriverEntryPointSuccess;
    }
    return cudaSuccess;
}

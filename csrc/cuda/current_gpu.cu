// With the driver's contexts, because the runtime opens the GPU that a thread begins with, the
// first, where it shall make that one current again (cudaSetDevice, since CUDA 12) and where it is
// asked about an address (cudaPointerGetAttributes).
#include "cuda/current_gpu.h"

#if !defined(SMOLVLA_CUDA_EMULATED)
#include <cuda.h>
#endif

namespace smolvla::cuda {
namespace {

// Found through the runtime, so that nothing is linked with the driver's library.
struct Driver {
    decltype(cuInit)* init = nullptr;
    decltype(cuDevicePrimaryCtxRetain)* retain = nullptr;
    decltype(cuDevicePrimaryCtxRelease)* release = nullptr;
    decltype(cuCtxPushCurrent)* push = nullptr;
    decltype(cuCtxPopCurrent)* pop = nullptr;
    decltype(cuPointerGetAttribute)* attribute = nullptr;
    cudaError_t status = cudaSuccess;  // why they cannot be called

    Driver() {
        find("cuInit", &init);
        find("cuDevicePrimaryCtxRetain", &retain);
        find("cuDevicePrimaryCtxRelease", &release);
        find("cuCtxPushCurrent", &push);
        find("cuCtxPopCurrent", &pop);
        find("cuPointerGetAttribute", &attribute);
        cudaGetLastError();  // whoever asks CUDA next shall not find it
        if (status == cudaSuccess) status = cudaError_t(init(0));
    }

private:
    template <class F>
    void find(const char* name, F** function) {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
        const cudaError_t asked =
            cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
        const cudaError_t asked = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
        *function = reinterpret_cast<F*>(found);
        if (!found && status == cudaSuccess) status = asked ? asked : cudaErrorNotSupported;
    }
};
const Driver& driver() {
    static const Driver found;
    return found;
}

}  // namespace

// The runtime's numbers of errors are the driver's.
CurrentGpu::CurrentGpu(int gpu) : gpu_(gpu) {
    int now = 0;
    CUcontext context = nullptr;
    status_ = cudaGetDevice(&now);
    if (status_ != cudaSuccess || now == gpu) return;
    status_ = driver().status;
    if (status_ == cudaSuccess) status_ = cudaError_t(driver().retain(&context, gpu));
    if (status_ != cudaSuccess) return;
    status_ = cudaError_t(driver().push(context));
    pushed_ = status_ == cudaSuccess;
    if (!pushed_) driver().release(gpu);
}

CurrentGpu::~CurrentGpu() {
    CUcontext context = nullptr;
    if (!pushed_) return;
    driver().pop(&context);
    driver().release(gpu_);
}

cudaError_t owner_of(const void* address, int* owner) {
    const auto at = reinterpret_cast<CUdeviceptr>(address);
    unsigned type = CU_MEMORYTYPE_HOST;
    *owner = kUnknown;
    if (driver().status != cudaSuccess) return driver().status;
    const CUresult asked = driver().attribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at);
    if (asked == CUDA_ERROR_INVALID_VALUE) return cudaSuccess;
    *owner = kPinned;
    if (asked != CUDA_SUCCESS || type == CU_MEMORYTYPE_HOST) return cudaError_t(asked);
    return cudaError_t(driver().attribute(owner, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, at));
}

}  // namespace smolvla::cuda

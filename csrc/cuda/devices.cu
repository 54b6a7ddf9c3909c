// Which GPUs there are, and why none can be used.
#include <algorithm>

#include "cuda/backend.h"
#include "cuda/device.h"

namespace smolvla {
namespace {

constexpr int kOldest = 80;

std::vector<int> built_for() {
#if defined(SMOLVLA_CUDA_EMULATED)
    return {};
#else
    std::vector<int> all;
    for (int architecture : {__CUDA_ARCH_LIST__}) all.push_back(architecture / 10);
    return all;
#endif
}

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string point(int sm) { return std::to_string(sm / 10) + "." + std::to_string(sm % 10); }

std::string no_devices(cudaError_t status, int driver) {
    if (status == cudaErrorInsufficientDriver && driver == 0)
        return "no NVIDIA driver was found (libcuda.so.1). Install it; in a container: docker run "
               "--gpus all (Jetson: --runtime nvidia)";
    int runtime = 0;
    cudaRuntimeGetVersion(&runtime);
    if (status == cudaErrorInsufficientDriver)
        return "the driver runs CUDA up to " + version_text(driver) + ", this build needs " +
               version_text(runtime) + ". Update the driver, or build with an older CUDA";
    if (status == cudaErrorNoDevice || status == cudaSuccess)
        return "the driver finds no GPU. Check nvidia-smi, the permissions of /dev/nvidia* and "
               "CUDA_VISIBLE_DEVICES";
    return std::string("the driver does not work: ") + cudaGetErrorString(status) +
           ". Check nvidia-smi; after an update of the driver, reboot";
}

// PTX of the lowest architecture is in the build too: what is newer than all can run that.
std::string unfit(const CudaDevice& device, const std::vector<int>& architectures) {
    if (device.sm < kOldest)
        return "expected a GPU of compute capability " + point(kOldest) + " or later, got " +
               device.name + " of " + point(device.sm);
    const auto lowest = std::min_element(architectures.begin(), architectures.end());
    if (lowest != architectures.end() && device.sm < *lowest)
        return "this build has kernels for compute capability " + point(*lowest) +
               " and later, got " + device.name + " of " + point(device.sm) +
               ". Build it for this one: pip install . -C cmake.define.SMOLVLA_CUDA=ON -C "
               "cmake.define.SMOLVLA_CUDA_ARCHS=" +
               std::to_string(device.sm);
    return "";
}

}  // namespace

CudaStatus cuda_status() {
    CudaStatus found{};
#if defined(SMOLVLA_CUDA_EMULATED)
    found.emulated = true;
#endif
    found.architectures = built_for();
    int driver = 0, count = 0, current = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver != 0)
        found.driver = version_text(driver);
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) count = 0;
    for (int i = 0; i < count; ++i) {
        cudaDeviceProp p;
        status = cudaGetDeviceProperties(&p, i);
        if (status != cudaSuccess) break;
        found.devices.push_back(
            {p.name, 10 * p.major + p.minor, p.totalGlobalMem, p.integrated != 0});
    }
    if (status == cudaSuccess && count != 0) status = cudaGetDevice(&current);
    cudaGetLastError();  // whoever asks CUDA next shall not find it
    if (status != cudaSuccess || count == 0)
        found.error = no_devices(status, driver);
    else
        found.error = unfit(found.devices[size_t(current)], found.architectures);
    return found;
}

}  // namespace smolvla

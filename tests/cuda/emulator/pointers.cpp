// What a pointer points to.
#include "streams.h"

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    using namespace emulator;
    int device = 0;
    if (cudaError_t error = cudaGetDevice(&device)) return error;
    if (!attributes) return keep(cudaErrorInvalidValue);
    Place place;
    locate(pointer, 1, &place);
    void* same = const_cast<void*>(pointer);
    const bool pinned = place == Place::pinned;
    *attributes = {pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice, device, same,
                   pinned ? same : nullptr};
    return cudaSuccess;
}

// Memory of the device and of the host, and what is copied between them.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "counters.h"
#include "streams.h"

namespace emulator {

namespace {

int fails_in = 0;

struct Allocation {
    size_t bytes;
    Place place;
    bool arena;
    int device;
};
std::mutex memory_mutex;
std::map<uintptr_t, Allocation>& allocations() {
    static std::map<uintptr_t, Allocation> all;
    return all;
}
size_t device_bytes = 0;

// Memory of protect_device_memory: one reservation, opened and closed as a whole.
constexpr size_t kArenaBytes = size_t(8) << 30;
char* arena = nullptr;
size_t arena_used = 0;
int arena_open = 0;

void* arena_take(size_t bytes) {
    if (!arena) {
        void* room = mmap(nullptr, kArenaBytes, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (room == MAP_FAILED) return nullptr;
        arena = static_cast<char*>(room);
    }
    const size_t room = (bytes + 255) / 256 * 256 + 256;
    if (arena_used + room > kArenaBytes) return nullptr;
    void* pointer = arena + arena_used;
    arena_used += room;
    return pointer;
}

cudaError_t allocate(void** pointer, size_t bytes, Place place) {
    if (no_device()) return keep(cudaErrorInsufficientDriver);
    if (!pointer) return keep(cudaErrorInvalidValue);
    open_current();
    if (cudaError_t error = not_while_capturing()) return error;
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    const std::lock_guard<std::mutex> lock(memory_mutex);
    if (fails_in > 0 && --fails_in == 0) return keep(cudaErrorMemoryAllocation);
    if (place == Place::device && bytes > device_model().memory_bytes - device_bytes)
        return keep(cudaErrorMemoryAllocation);
    // Not rounded up: AddressSanitizer guards the very next byte.
    const bool in_arena = place == Place::device && options().protect_device_memory;
    void* memory = nullptr;
    if (in_arena)
        memory = arena_take(bytes);
    else if (posix_memalign(&memory, 256, bytes) != 0)
        memory = nullptr;
    if (in_arena) open_device_memory();
    if (memory) std::memset(memory, 0xff, bytes);
    if (in_arena) close_device_memory();
    if (!memory) return keep(cudaErrorMemoryAllocation);
    allocations()[reinterpret_cast<uintptr_t>(memory)] = {bytes, place, in_arena, current_device()};
    if (place == Place::device) device_bytes += bytes;
    *pointer = memory;
    return cudaSuccess;
}

cudaError_t release(void* pointer, bool device) {
    open_current();
    if (!pointer) return cudaSuccess;
    if (cudaError_t error = not_while_capturing()) return error;
    drain_all();  // freeing waits for the device
    const std::lock_guard<std::mutex> lock(memory_mutex);
    const auto found = allocations().find(reinterpret_cast<uintptr_t>(pointer));
    if (found == allocations().end() || (found->second.place == Place::device) != device)
        return keep(cudaErrorInvalidValue);
    const Allocation allocation = found->second;
    allocations().erase(found);
    if (device) device_bytes -= allocation.bytes;
    if (!allocation.arena) std::free(pointer);
    if (device_bytes == 0) arena_used = 0;
    return cudaSuccess;
}

cudaError_t check_copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    Place to_place, from_place;
    if (!locate(to, bytes, &to_place) || !locate(from, bytes, &from_place))
        return keep(cudaErrorInvalidValue);
    const bool to_device = to_place == Place::device, from_device = from_place == Place::device;
    bool right = true;
    switch (kind) {
        case cudaMemcpyHostToHost: right = !to_device && !from_device; break;
        case cudaMemcpyHostToDevice: right = to_device && !from_device; break;
        case cudaMemcpyDeviceToHost: right = !to_device && from_device; break;
        case cudaMemcpyDeviceToDevice: right = to_device && from_device; break;
        case cudaMemcpyDefault: break;
    }
    return right ? cudaSuccess : keep(cudaErrorInvalidValue);
}

}  // namespace

void fail_allocation(int nth) { fails_in = nth; }
size_t device_bytes_in_use() { return device_bytes; }
size_t device_bytes_on(int device) {
    size_t bytes = 0;
    for (const auto& [begin, allocation] : allocations())
        if (allocation.place == Place::device && allocation.device == device)
            bytes += allocation.bytes;
    return bytes;
}
size_t allocations_in_use() { return allocations().size(); }

bool locate(const void* pointer, size_t bytes, Place* place, int* device) {
    const std::lock_guard<std::mutex> lock(memory_mutex);
    *place = Place::pageable;
    const uintptr_t at = reinterpret_cast<uintptr_t>(pointer);
    auto next = allocations().upper_bound(at);
    if (next == allocations().begin()) return true;
    const auto& [begin, allocation] = *--next;
    if (at >= begin + allocation.bytes) return true;
    *place = allocation.place;
    if (device) *device = allocation.device;
    return at + bytes <= begin + allocation.bytes;
}

void open_device_memory() {
    if (arena && arena_open++ == 0) mprotect(arena, kArenaBytes, PROT_READ | PROT_WRITE);
}

void close_device_memory() {
    if (arena && --arena_open == 0) mprotect(arena, kArenaBytes, PROT_NONE);
}

}  // namespace emulator

using namespace emulator;

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    if (no_device()) return keep(cudaErrorInsufficientDriver);
    open_current();
    *total = device_model().memory_bytes;
    *free = device_model().memory_bytes - device_bytes;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
    return allocate(pointer, bytes, Place::device);
}
cudaError_t cudaFree(void* pointer) { return release(pointer, true); }
cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
    return allocate(pointer, bytes, Place::pinned);
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
    return allocate(pointer, bytes, Place::pinned);
}
cudaError_t cudaFreeHost(void* pointer) { return release(pointer, false); }
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
    Place place;
    open_current();
    if (!locate(host, 1, &place) || place != Place::pinned) return keep(cudaErrorInvalidValue);
    *device = host;
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
    if (width == 0 || height == 0) return cudaSuccess;
    if (width > to_pitch || width > from_pitch) return keep(cudaErrorInvalidValue);
    char* first = static_cast<char*>(to);
    const char* source = static_cast<const char*>(from);
    if (cudaError_t error = check_copy(to, from, width, kind)) return error;
    if (cudaError_t error = check_copy(first + to_pitch * (height - 1),
                                       source + from_pitch * (height - 1), width, kind))
        return error;
    // A graph that remembers pageable memory reads it at every replay: refused.
    Place to_place, from_place;
    locate(to, 1, &to_place), locate(from, 1, &from_place);
    const bool pageable = to_place == Place::pageable || from_place == Place::pageable;
    if (pageable && stream && stream->capture) {
        stream->capture->invalid = true;
        return keep(cudaErrorStreamCaptureUnsupported);
    }
    // Pageable memory is read before the call returns; what was read may arrive later.
    std::shared_ptr<std::vector<char>> read;
    if (from_place == Place::pageable) {
        read = std::make_shared<std::vector<char>>(width * height);
        for (size_t i = 0; i < height; ++i)
            std::memcpy(&(*read)[i * width], source + i * from_pitch, width);
        source = read->data();
        from_pitch = width;
    }
    const cudaError_t error = enqueue(stream, [=] {
        ++counted.copies;
        for (size_t i = 0; i < height; ++i)
            std::memcpy(first + i * to_pitch, source + i * from_pitch, width);
        (void)read;  // lives until here
    });
    return !error && to_place == Place::pageable ? cudaStreamSynchronize(stream) : error;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

// On the legacy default stream. From pageable memory it returns when the source was read, which may
// be before the destination is written: a non-blocking stream must not rely on it.
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    if (cudaError_t error = not_while_capturing()) return error;
    drain_default();
    Place to_place, from_place;
    locate(to, 1, &to_place), locate(from, 1, &from_place);
    const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    const bool under_way = to_place == Place::device && from_place == Place::pageable;
    return error || under_way ? error : cudaStreamSynchronize(nullptr);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
    Place place;
    if (bytes == 0) return cudaSuccess;
    if (!locate(to, bytes, &place) || place == Place::pageable) return keep(cudaErrorInvalidValue);
    return enqueue(stream, [=] { std::memset(to, value, bytes); });
}

// On the legacy default stream, and of device memory it does not wait either.
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
    if (cudaError_t error = not_while_capturing()) return error;
    return cudaMemsetAsync(to, value, bytes, nullptr);
}

// The runtime API as a backend uses it: limits, memory, streams, capture, what fails and how.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "cuda/ptx.h"
#include "device_array.h"

using namespace smolvla::cuda;

namespace {

__global__ void add(int* to, int value, int count) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count) to[i] += value;
}
__global__ void fill_indices(uint3* threads, uint3* blocks, int* lanes) {
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned at = block * blockDim.x * blockDim.y * blockDim.z + thread;
    threads[at] = threadIdx, blocks[at] = blockIdx;
    lanes[at] = int(__ballot_sync(kAllLanes, true));
}
__global__ void use_shared(int* out) { out[0] = shared_memory<unsigned char>()[0]; }

void test_indices() {
    in_every_order([] {
        const dim3 grid(3, 2, 4), block(5, 3, 7);
        constexpr size_t kBlocks = 24, kThreads = 105, kAll = kBlocks * kThreads;
        DeviceArray<uint3> threads(kAll), blocks(kAll);
        DeviceArray<int> lanes(kAll);
        CHECK(!launch(fill_indices, Launch{grid, block}, threads.data(), blocks.data(),
                      lanes.data()));
        const auto t = threads.read(), b = blocks.read();
        const auto l = lanes.read();
        for (size_t at = 0; at < kAll; ++at) {
            const size_t thread = at % kThreads, number = at / kThreads;
            CHECK(t[at].x == thread % 5 && t[at].y == thread / 5 % 3 && t[at].z == thread / 15);
            CHECK(b[at].x == number % 3 && b[at].y == number / 3 % 2 && b[at].z == number / 6);
            CHECK(l[at] == (thread < 96 ? -1 : (1 << 9) - 1));
        }
    });
}

void test_limits() {
    DeviceArray<int> out(std::vector<int>{0});
    CHECK(launch(add, Launch{1, 1025}, out.data(), 1, 1) == cudaErrorInvalidConfiguration);
    CHECK(launch(add, Launch{1, 0}, out.data(), 1, 1) == cudaErrorInvalidConfiguration);
    CHECK(launch(add, Launch{0, 1}, out.data(), 1, 1) == cudaErrorInvalidConfiguration);
    CHECK(launch(add, Launch{dim3(1, 65536), 1}, out.data(), 1, 1) ==
          cudaErrorInvalidConfiguration);
    CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
    CHECK(cudaGetLastError() == cudaSuccess);
    CHECK(!launch(add, Launch{1, 1024}, out.data(), 1, 1));
    const auto with = [&](size_t bytes) {
        return launch(use_shared, Launch{1, 32, bytes}, out.data());
    };
    CHECK(!with(48 * 1024));
    CHECK(with(48 * 1024 + 1) == cudaErrorInvalidValue);
    CHECK(!allow_shared_memory(use_shared, 99 * 1024));
    CHECK(!with(99 * 1024));
    CHECK(with(99 * 1024 + 1) == cudaErrorInvalidValue);
    CHECK(allow_shared_memory(use_shared, 99 * 1024 + 1) == cudaErrorInvalidValue);
    const int allowed[][2] = {{80, 163},  {87, 163},  {89, 99}, {90, 227},
                              {100, 227}, {110, 227}, {120, 99}};
    for (const auto& [architecture, kilobytes] : allowed) {
        emulator::use_device(architecture);
        CHECK(!allow_shared_memory(use_shared, kilobytes * 1024));
        CHECK(allow_shared_memory(use_shared, kilobytes * 1024 + 1) == cudaErrorInvalidValue);
        CHECK(!with(size_t(kilobytes) * 1024));
        cudaDeviceProp properties;
        CHECK(!cudaGetDeviceProperties(&properties, 0));
        CHECK(properties.major * 10 + properties.minor == architecture);
        CHECK(properties.sharedMemPerBlockOptin == size_t(kilobytes) * 1024);
    }
    emulator::use_device(89);
    cudaGetLastError();
}

void test_memory() {
    const size_t before = emulator::device_bytes_in_use();
    int *first = nullptr, *second = nullptr, *pinned = nullptr;
    CHECK(!cudaMalloc(&first, 40));
    CHECK(reinterpret_cast<uintptr_t>(first) % 256 == 0);
    CHECK(emulator::device_bytes_in_use() == before + 40);
    int host[10];
    CHECK(!cudaMemcpy(host, first, 40, cudaMemcpyDeviceToHost));
    CHECK(host[0] == -1 && host[9] == -1);
    CHECK(cudaMemcpy(host, first, 41, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host, first + 9, 8, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host, first, 40, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(first, host, 40, cudaMemcpyDeviceToDevice) == cudaErrorInvalidValue);
    CHECK(cudaFreeHost(first) == cudaErrorInvalidValue);
    CHECK(cudaFree(host) == cudaErrorInvalidValue);
    CHECK(!cudaMemset(first, 1, 40));
    CHECK(!cudaMemcpy(host, first, 40, cudaMemcpyDefault));
    CHECK(host[3] == 0x01010101);
    emulator::fail_allocation(2);
    CHECK(!cudaMalloc(&second, 8));
    CHECK(!cudaFree(second));
    second = first;
    CHECK(cudaMalloc(&second, 8) == cudaErrorMemoryAllocation);
    CHECK(second == nullptr);
    CHECK(!cudaMalloc(&second, 8));  // the third
    size_t free = 0, total = 0;
    CHECK(!cudaMemGetInfo(&free, &total));
    int* all = nullptr;
    CHECK(cudaMalloc(&all, free + 1) == cudaErrorMemoryAllocation);
    CHECK(!cudaHostAlloc(&pinned, 16, cudaHostAllocMapped));
    int* mapped = nullptr;
    CHECK(!cudaHostGetDevicePointer(&mapped, pinned, 0));
    pinned[0] = 5;
    CHECK(!launch(add, Launch{1, 1}, mapped, 2, 1));
    CHECK(!cudaDeviceSynchronize());
    CHECK(pinned[0] == 7);
    CHECK(cudaHostGetDevicePointer(&mapped, host, 0) == cudaErrorInvalidValue);
    CHECK(!cudaFree(first) && !cudaFree(second) && !cudaFreeHost(pinned) && !cudaFree(nullptr));
    CHECK(cudaFree(first) == cudaErrorInvalidValue);
    CHECK(emulator::device_bytes_in_use() == before);
    cudaGetLastError();
}

void test_no_driver() {
    emulator::remove_device(true);
    int count = 7;
    void* pointer = nullptr;
    CHECK(cudaGetDeviceCount(&count) == cudaErrorInsufficientDriver && count == 0);
    CHECK(cudaMalloc(&pointer, 8) == cudaErrorInsufficientDriver);
    CHECK(cudaSetDevice(0) == cudaErrorInsufficientDriver);
    emulator::remove_device(false);
    CHECK(!cudaGetDeviceCount(&count) && count == 1);
    CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice);
    cudaGetLastError();
}

// Deferred, nothing has happened until somebody waits; then all of it, in order.
void test_deferred() {
    emulator::options().deferred = true;
    cudaStream_t first = nullptr, second = nullptr;
    cudaEvent_t event = nullptr;
    CHECK(!cudaStreamCreate(&first) && !cudaStreamCreate(&second) && !cudaEventCreate(&event));
    int* device = nullptr;
    int* pinned = nullptr;
    CHECK(!cudaMalloc(&device, 4) && !cudaMallocHost(&pinned, 4));
    pinned[0] = 1;
    CHECK(!cudaMemcpyAsync(device, pinned, 4, cudaMemcpyHostToDevice, first));
    CHECK(!launch(add, Launch{1, 1, 0, first}, device, 10, 1));
    pinned[0] = 2;  // too early, and it shows
    CHECK(!cudaEventRecord(event, first));
    CHECK(!launch(add, Launch{1, 1, 0, first}, device, 100, 1));
    CHECK(cudaEventQuery(event) == cudaErrorNotReady);
    CHECK(cudaStreamQuery(first) == cudaErrorNotReady);
    CHECK(!cudaStreamWaitEvent(second, event));
    CHECK(!cudaMemcpyAsync(pinned, device, 4, cudaMemcpyDeviceToHost, second));
    CHECK(pinned[0] == 2);
    CHECK(!cudaStreamSynchronize(second));
    CHECK(pinned[0] == 12);  // the first stream went as far as its event, no further
    CHECK(!cudaEventQuery(event));
    CHECK(!cudaStreamSynchronize(first));
    int value = 0;
    CHECK(!cudaMemcpy(&value, device, 4, cudaMemcpyDeviceToHost));
    CHECK(value == 112);
    CHECK(!cudaFree(device) && !cudaFreeHost(pinned) && !cudaEventDestroy(event));
    CHECK(!cudaStreamDestroy(first) && !cudaStreamDestroy(second));
    emulator::options().deferred = false;
}

// The legacy default stream and blocking streams wait for each other; a non-blocking one waits for
// neither, so what came late from a memset or a copy of pageable memory wins.
void test_default_stream() {
    emulator::options().deferred = true;
    for (unsigned flags : {cudaStreamDefault, cudaStreamNonBlocking}) {
        const bool waits = flags == cudaStreamDefault;
        cudaStream_t stream = nullptr;
        CHECK(!cudaStreamCreateWithFlags(&stream, flags));
        int *device = nullptr, *pinned = nullptr;
        CHECK(!cudaMalloc(&device, 4) && !cudaMallocHost(&pinned, 4));
        const auto value = [&] {
            CHECK(!cudaMemcpyAsync(pinned, device, 4, cudaMemcpyDeviceToHost, stream));
            CHECK(!cudaStreamSynchronize(stream));
            return pinned[0];
        };
        CHECK(!cudaMemset(device, 0, 4));
        CHECK(!launch(add, Launch{1, 1, 0, stream}, device, 7, 1));
        CHECK(value() == (waits ? 7 : 6));  // poison is -1
        CHECK(!cudaStreamSynchronize(nullptr));
        CHECK(value() == (waits ? 7 : 0));
        int source = 20;
        CHECK(!cudaMemcpy(device, &source, 4, cudaMemcpyHostToDevice));
        source = 1000;  // was read
        CHECK(value() == (waits ? 20 : 0));
        CHECK(!cudaDeviceSynchronize());
        CHECK(value() == 20);
        CHECK(!launch(add, Launch{1, 1, 0, stream}, device, 1, 1));
        int seen = 0;  // the way back waits for its own stream alone, too
        CHECK(!cudaMemcpy(&seen, device, 4, cudaMemcpyDeviceToHost));
        CHECK(seen == (waits ? 21 : 20));
        CHECK(!cudaStreamDestroy(stream) && !cudaFree(device) && !cudaFreeHost(pinned));
    }
    emulator::options().deferred = false;
}

// A thread's current device is its own, and a stream takes kernels while its device is current.
void test_several_devices() {
    emulator::use_devices(2);
    int count = 0, current = 7;
    CHECK(!cudaGetDeviceCount(&count) && count == 2);
    CHECK(cudaSetDevice(2) == cudaErrorInvalidDevice);
    CHECK(!cudaSetDevice(1));
    cudaStream_t stream = nullptr;
    int* device = nullptr;
    CHECK(!cudaStreamCreate(&stream) && !cudaMalloc(&device, 4) && !cudaMemset(device, 0, 4));
    CHECK(emulator::device_bytes_on(1) == 4 && emulator::device_bytes_on(0) == 0);
    CHECK(!allow_shared_memory(use_shared, 60 * 1024));
    CHECK(!launch(add, Launch{1, 1, 0, stream}, device, 1, 1));
    std::thread([&] {
        CHECK(!cudaGetDevice(&current) && current == 0);
        CHECK(launch(add, Launch{1, 1, 0, stream}, device, 1, 1) == cudaErrorInvalidResourceHandle);
        CHECK(!cudaSetDevice(1));
        CHECK(!launch(add, Launch{1, 1, 0, stream}, device, 1, 1));
    }).join();
    CHECK(!cudaGetDevice(&current) && current == 1);
    CHECK(!launch(use_shared, Launch{1, 32, 60 * 1024}, device + 0));
    CHECK(!cudaFree(device) && !cudaStreamDestroy(stream) && !cudaSetDevice(0));
    emulator::use_devices(1);
    cudaGetLastError();
}

// In a thread of its own: what opens the device that a thread begins with, and what does not.
template <class F>
bool opens(const F& call) {
    emulator::use_devices(2);
    std::thread([&] { CHECK(!call()); }).join();
    CHECK(!emulator::opened(1));
    return emulator::opened(0);
}

void test_contexts() {
    int number = 0;
    cudaDeviceProp properties;
    cudaStream_t stream = nullptr;
    CHECK(!opens([&] { return cudaGetDeviceCount(&number); }));
    CHECK(!opens([&] { return cudaGetDevice(&number); }));
    CHECK(!opens([&] { return cudaGetDeviceProperties(&properties, 1); }));
    CHECK(!opens([&] { return cudaDeviceGetAttribute(&number, cudaDevAttrIntegrated, 1); }));
    CHECK(opens([&] { return cudaSetDevice(0); }));
    CHECK(opens([&] { return cudaFree(nullptr); }));
    CHECK(opens([&] { return cudaStreamCreate(&stream); }));
    CHECK(opens([&] { return cudaStreamSynchronize(stream); }));
    CHECK(opens([&] { return cudaStreamDestroy(stream); }));

    emulator::use_devices(2);
    std::thread([&] {
        CUcontext second = nullptr, popped = nullptr;
        CHECK(cuCtxPopCurrent(&popped) == CUDA_ERROR_INVALID_CONTEXT);
        CHECK(cuDevicePrimaryCtxRetain(&second, 2) == CUDA_ERROR_INVALID_DEVICE);
        CHECK(!cuDevicePrimaryCtxRetain(&second, 1) && !cuCtxPushCurrent(second));
        CHECK(!cudaGetDevice(&number) && number == 1);
        CHECK(!cudaFree(nullptr));
        CHECK(!cuCtxPopCurrent(&popped) && popped == second);
        CHECK(!cudaGetDevice(&number) && number == 0);
        CHECK(emulator::handles_in_use() == 1 && !cuDevicePrimaryCtxRelease(1));
        CHECK(emulator::opened(1) && !emulator::opened(0));
    }).join();
    emulator::use_devices(1);
}

void test_graph() {
    cudaStream_t stream = nullptr, other = nullptr;
    cudaEvent_t fork = nullptr, join = nullptr;
    CHECK(!cudaStreamCreate(&stream) && !cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    CHECK(!cudaEventCreate(&fork) && !cudaEventCreate(&join));
    DeviceArray<int> data(std::vector<int>{0, 0, 0});
    int* pinned = nullptr;
    CHECK(!cudaMallocHost(&pinned, 4));
    const uint64_t kernels = emulator::counters().kernels;
    CHECK(!cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    int value = 5;
    CHECK(!cudaMemcpyAsync(data.data() + 2, pinned, 4, cudaMemcpyHostToDevice, stream));
    CHECK(!launch(add, Launch{1, 32, 0, stream}, data.data(), value, 3));
    value = 1000;  // the argument was taken by value
    CHECK(!cudaEventRecord(fork, stream) && !cudaStreamWaitEvent(other, fork));
    CHECK(!launch(add, Launch{1, 32, 0, other}, data.data(), 2, 1));
    CHECK(!cudaEventRecord(join, other) && !cudaStreamWaitEvent(stream, join));
    CHECK(!cudaMemsetAsync(data.data() + 1, 0, 4, stream));
    cudaGraph_t graph;
    CHECK(!cudaStreamEndCapture(stream, &graph));
    CHECK(emulator::counters().kernels == kernels);
    size_t nodes = 0;
    CHECK(!cudaGraphGetNodes(graph, nullptr, &nodes) && nodes == 4);
    cudaGraphExec_t exec;
    CHECK(!cudaGraphInstantiate(&exec, graph) && !cudaGraphDestroy(graph));
    for (int replay = 1; replay <= 3; ++replay) {
        pinned[0] = 10 * replay;  // read when the graph runs
        CHECK(!cudaGraphLaunch(exec, stream) && !cudaStreamSynchronize(stream));
        CHECK((data.read() == std::vector<int>{7 * replay, 0, 10 * replay + 5}));
    }
    CHECK(emulator::counters().kernels == kernels + 6);
    CHECK(!cudaGraphExecDestroy(exec) && !cudaFreeHost(pinned));

    // What a capture forbids, and that it is lost then.
    const auto lost_by = [&](auto forbidden) {
        CHECK(!cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        CHECK(forbidden() == cudaErrorStreamCaptureUnsupported);
        cudaGraph_t none;
        const bool lost = cudaStreamEndCapture(stream, &none) == cudaErrorStreamCaptureInvalidated;
        return lost && none == nullptr;
    };
    void* pointer = nullptr;
    int host = 0;
    CHECK(lost_by([&] { return cudaMalloc(&pointer, 8); }));
    CHECK(lost_by([&] { return cudaStreamSynchronize(stream); }));
    CHECK(lost_by([&] { return cudaDeviceSynchronize(); }));
    CHECK(lost_by([&] { return cudaMemcpy(&host, data.data(), 4, cudaMemcpyDeviceToHost); }));
    CHECK(lost_by(
        [&] { return cudaMemcpyAsync(data.data(), &host, 4, cudaMemcpyHostToDevice, stream); }));
    CHECK(lost_by([&] { return launch(add, Launch{1, 1}, data.data(), 1, 1); }));
    // A branch that is not joined.
    CHECK(!cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    CHECK(!cudaEventRecord(fork, stream) && !cudaStreamWaitEvent(other, fork));
    CHECK(!launch(add, Launch{1, 1, 0, other}, data.data(), 1, 1));
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureUnjoined);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureUnmatched);
    CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) ==
          cudaErrorStreamCaptureUnsupported);
    CHECK(!launch(add, Launch{1, 1, 0, stream}, data.data(), 1, 1));
    CHECK(!cudaEventDestroy(fork) && !cudaEventDestroy(join));
    CHECK(!cudaStreamDestroy(stream) && !cudaStreamDestroy(other));
    CHECK(cudaStreamSynchronize(stream) == cudaErrorInvalidResourceHandle);
    cudaGetLastError();
}

// With protected memory a host that follows a device pointer dies at that access.
void test_protection() {
    emulator::options().protect_device_memory = true;
    {
        DeviceArray<int> data(std::vector<int>{1, 2, 3});
        CHECK(!launch(add, Launch{1, 32}, data.data(), 4, 3));
        CHECK((data.read() == std::vector<int>{5, 6, 7}));
        const pid_t child = fork();
        if (child == 0) {
            std::signal(SIGSEGV, SIG_DFL);
            std::signal(SIGBUS, SIG_DFL);
            volatile int* forbidden = data.data();
            _exit(forbidden[1] == 6 ? 0 : 1);
        }
        int status = 0;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
        CHECK((data.read() == std::vector<int>{5, 6, 7}));
    }
    emulator::options().protect_device_memory = false;
}

}  // namespace

int main() {
    test_indices();
    test_limits();
    test_memory();
    test_no_driver();
    test_deferred();
    test_default_stream();
    test_several_devices();
    test_contexts();
    test_graph();
    test_protection();
    CHECK(emulator::allocations_in_use() == 0 && emulator::handles_in_use() == 0);
    return report("cuda_runtime");
}

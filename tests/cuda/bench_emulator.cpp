// Warp-wide operations a second: what decides how large a shape a test can afford. Not a test.
#include <cstdio>
#include <ctime>

#include "control.h"
#include "cuda/ptx.h"

using namespace smolvla::cuda;

namespace {

__global__ void many_mma(float* out, int times) {
    float d[4][4] = {};
    const uint32_t a[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
    for (int i = 0; i < times; ++i) mma_bf16(d[i % 4], a, 0x3f803f80u, 0x3f803f80u);
    out[threadIdx.x] = d[0][0] + d[1][1] + d[2][2] + d[3][3];
}

__global__ void many_mma_s8(float* out, int times) {
    int d[4][4] = {};
    const uint32_t a[4] = {1, 2, 3, 4};
    for (int i = 0; i < times; ++i) mma_s8(d[i % 4], a, 5, 6);
    out[threadIdx.x] = float(d[0][0] + d[1][1] + d[2][2] + d[3][3]);
}

__global__ void many_shuffles(float* out, int times) {
    float value = float(threadIdx.x);
    for (int i = 0; i < times; ++i) value = shuffle_xor(value, 1 << (i % 5));
    out[threadIdx.x] = value;
}

__global__ void many_ldmatrix(float* out, int times) {
    uint32_t* shared = shared_memory<uint32_t>();
    for (int i = 0; i < 4; ++i) shared[4 * threadIdx.x + i] = threadIdx.x;
    __syncthreads();
    uint32_t r[4], sum = 0;
    for (int i = 0; i < times; ++i) {
        ldmatrix_x4(r, shared_address(shared + 4 * threadIdx.x));
        sum += r[i % 4];
    }
    out[threadIdx.x] = float(sum);
}

__global__ void many_barriers(float* out, int times) {
    for (int i = 0; i < times; ++i) __syncthreads();
    out[threadIdx.x] = 0;
}

__global__ void nothing(float* out, int) { out[threadIdx.x] = 0; }

void measure(const char* name, void (*kernel)(float*, int), int blocks, int threads, int times) {
    float* out;
    if (cudaMalloc(&out, 1024 * sizeof(float))) return;
    const Launch how{unsigned(blocks), unsigned(threads), size_t(16 * threads)};
    if (launch(kernel, how, out, times)) return;
    const std::clock_t start = std::clock();  // of this process: others may be busy
    if (launch(kernel, how, out, times)) return;
    const double seconds = double(std::clock() - start) / CLOCKS_PER_SEC;
    const double operations = double(blocks) * (threads / 32) * times;
    std::printf("%-14s %7.2f million a second (%d threads a block)\n", name,
                operations / seconds * 1e-6, threads);
    cudaFree(out);
}

}  // namespace

int main() {
    for (int threads : {32, 128, 256}) {
        measure("mma bf16", many_mma, 4, threads, 2000000 / threads);
        measure("mma s8", many_mma_s8, 4, threads, 2000000 / threads);
        measure("shuffle", many_shuffles, 4, threads, 2000000 / threads);
        measure("ldmatrix", many_ldmatrix, 4, threads, 2000000 / threads);
        measure("__syncthreads", many_barriers, 4, threads, 2000000 / threads);
        measure("empty kernel", nothing, 20000, threads, 1);
    }
    return 0;
}

// Under ThreadSanitizer every thread of a block is one of its threads: a race in shared memory is
// reported whatever the order of running. One kernel a call, by name; the wrong ones must fail.
#include <cstdio>
#include <string>

#include "cuda/ptx.h"
#include "device_array.h"

using namespace smolvla::cuda;

namespace {

enum class Wrong { nothing, block_barrier, warp_barrier, copy_barrier, refill };

// Exchanges between warps, between lanes and through cp.async, each with the barrier it needs.
template <Wrong WRONG>
__global__ void exchange(const int* in, int* out) {
    int* shared = shared_memory<int>();
    const int i = int(threadIdx.x), n = int(blockDim.x);
    shared[i] = in[i];
    if (WRONG != Wrong::block_barrier) __syncthreads();
    int sum = shared[n - 1 - i];
    __syncthreads();
    shared[i] = 2 * in[i];
    if (WRONG != Wrong::warp_barrier) __syncwarp();
    sum += shared[i ^ 1];
    uint32_t r[4] = {};
    if (WRONG != Wrong::warp_barrier && i < 32)  // of what this warp wrote: 128 bytes
        ldmatrix_x4(r, shared_address(shared) + 16 * i % 128);
    __syncthreads();
    for (int round = 0; round < 2; ++round) {
        copy_16(shared_address(shared + 4 * i), in + 4 * i);
        copy_commit();
        copy_wait<0>();
        if (WRONG != Wrong::copy_barrier) __syncthreads();
        sum += shared[4 * ((i + 32) % n)];
        if (WRONG != Wrong::refill) __syncthreads();
    }
    out[i] = sum + int(r[0] & 1);
}

void run(void (*kernel)(const int*, int*)) {
    const std::vector<int> in(4 * 96, 1);
    DeviceArray<int> device_in(in), device_out(96);
    CHECK(!launch(kernel, Launch{2, 96, in.size() * 4}, device_in.data(), device_out.data()));
    // Wrong ones are for the sanitizer alone to find.
    const std::vector<int> out = device_out.read();
    if (kernel == exchange<Wrong::nothing>) CHECK(out == std::vector<int>(96, 5));
}

}  // namespace

int main(int, char** argv) {
    const std::string which = argv[1] ? argv[1] : "";
    if (which == "none")
        run(exchange<Wrong::nothing>);
    else if (which == "block_barrier")
        run(exchange<Wrong::block_barrier>);
    else if (which == "warp_barrier")
        run(exchange<Wrong::warp_barrier>);
    else if (which == "copy_barrier")
        run(exchange<Wrong::copy_barrier>);
    else if (which == "refill")
        run(exchange<Wrong::refill>);
    else
        return 2;
    return report("cuda_races");
}

// For the gate's own tests: an instruction that came with sm_90.
#include "cuda/ptx.h"

namespace smolvla::cuda {

__global__ void sample(float* y) {
    asm volatile("griddepcontrol.wait;" ::: "memory");
    y[threadIdx.x] = 1.0f;
}

}  // namespace smolvla::cuda

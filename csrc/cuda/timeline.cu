#include "cuda/timeline.h"

#include "cuda/status.h"

namespace smolvla::cuda {

Timeline::~Timeline() {
    for (cudaEvent_t moment : moments_)
        if (moment) cudaEventDestroy(moment);
    if (stream_) cudaStreamDestroy(stream_);
}

void Timeline::begin() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
    for (cudaEvent_t& moment : moments_) check(cudaEventCreate(&moment), "making an event");
}

void Timeline::mark(int moment) {
    check(cudaEventRecord(moments_[moment], stream_), "noting a moment");
}

double Timeline::between(int first, int second) const {
    float milliseconds = 0;
    check(cudaEventSynchronize(moments_[second]), "timing");
    check(cudaEventElapsedTime(&milliseconds, moments_[first], moments_[second]), "timing");
    return milliseconds;
}

}  // namespace smolvla::cuda

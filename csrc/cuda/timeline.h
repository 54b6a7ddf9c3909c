// The stream that a backend works on, and the moments noted on it.
#pragma once

#include "cuda/device.h"
#include "ops/ops.h"

namespace smolvla::cuda {

class Timeline {
public:
    Timeline() = default;
    ~Timeline();
    Timeline(const Timeline&) = delete;
    Timeline& operator=(const Timeline&) = delete;

    // On the current GPU. Raises a backend error, and what was made until then is given back.
    void begin();
    cudaStream_t stream() const { return stream_; }
    // As Backend::mark and Backend::between.
    void mark(int moment);
    double between(int first, int second) const;

private:
    cudaStream_t stream_ = nullptr;
    cudaEvent_t moments_[Backend::kMoments] = {};
};

}  // namespace smolvla::cuda

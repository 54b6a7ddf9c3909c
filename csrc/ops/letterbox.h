// Where a frame lies in its letterbox (cpu/image.h): at the lower right; the rest is padding.
#pragma once

#include <algorithm>

#include "ops/ops.h"

namespace smolvla {

struct Inner {
    int height, width;
};

inline Inner letterbox_inner(const Frame& frame, int height, int width) {
    if (frame.height == height && frame.width == width) return {height, width};
    const double ratio = std::max(double(frame.width) / width, double(frame.height) / height);
    return {std::clamp(static_cast<int>(frame.height / ratio), 1, height),
            std::clamp(static_cast<int>(frame.width / ratio), 1, width)};
}

}  // namespace smolvla

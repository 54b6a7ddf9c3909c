// Letterbox: a camera frame to the vision tower's pixels, as LeRobot's resize_with_pad does it.
//
// ratio = max(w / W, h / H); the frame becomes int(w / ratio) x int(h / ratio) by bilinear
// interpolation (pixel centres, edges clamped, no antialias: torch's align_corners=False), is put
// at the bottom right, padded left and top with black, and mapped from [0, 1] to [-1, 1].
#pragma once

#include <vector>

#include "ops/ops.h"

namespace smolvla::cpu {

class Letterbox {
public:
    Letterbox(const Frame& frame, int height, int width);
    // Writes row y of all three planes of pixels [3, height, width].
    void row(int y, float* pixels) const;

private:
    template <class Pixel>
    void fill(int y, const Pixel* data, float* pixels) const;

    const Frame frame_;
    const int height_, width_;
    const int inner_height_, inner_width_;
};

// The two neighbours of an output pixel and the weight of the second.
struct Tap {
    int first, second;
    float weight;
};
Tap bilinear_tap(int out_index, int in_size, int out_size);

}  // namespace smolvla::cpu

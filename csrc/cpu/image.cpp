#include "cpu/image.h"

#include <algorithm>

#include "ops/letterbox.h"

namespace smolvla::cpu {
namespace {
inline float unit(uint8_t v) { return static_cast<float>(v) / 255.0f; }
inline float unit(float v) { return v; }
}  // namespace

Tap bilinear_tap(int out_index, int in_size, int out_size) {
    const float scale = static_cast<float>(in_size) / static_cast<float>(out_size);
    const float at = std::max(0.0f, (static_cast<float>(out_index) + 0.5f) * scale - 0.5f);
    const int first = std::min(static_cast<int>(at), in_size - 1);
    return {first, std::min(first + 1, in_size - 1), at - static_cast<float>(first)};
}

Letterbox::Letterbox(const Frame& frame, int height, int width)
    : frame_(frame),
      height_(height),
      width_(width),
      inner_height_(letterbox_inner(frame, height, width).height),
      inner_width_(letterbox_inner(frame, height, width).width) {}

template <class Pixel>
void Letterbox::fill(int y, const Pixel* data, float* pixels) const {
    const size_t plane = size_t(height_) * width_;
    float* to = pixels + size_t(y) * width_;
    const int top = height_ - inner_height_, left = width_ - inner_width_;
    const int padding = y < top ? width_ : left;
    for (int c = 0; c < 3; ++c) std::fill_n(to + c * plane, padding, -1.0f);
    if (y < top) return;
    const Tap v = bilinear_tap(y - top, frame_.height, inner_height_);
    const size_t stride = size_t(frame_.width) * 3;
    const Pixel* above = data + v.first * stride;
    const Pixel* below = data + v.second * stride;
    for (int x = 0; x < inner_width_; ++x) {
        const Tap h = bilinear_tap(x, frame_.width, inner_width_);
        const int a = h.first * 3, b = h.second * 3;
        for (int c = 0; c < 3; ++c) {
            const float upper =
                (1.0f - h.weight) * unit(above[a + c]) + h.weight * unit(above[b + c]);
            const float lower =
                (1.0f - h.weight) * unit(below[a + c]) + h.weight * unit(below[b + c]);
            to[c * plane + left + x] = ((1.0f - v.weight) * upper + v.weight * lower) * 2.0f - 1.0f;
        }
    }
}

void Letterbox::row(int y, float* pixels) const {
    if (frame_.is_u8)
        fill(y, static_cast<const uint8_t*>(frame_.data), pixels);
    else
        fill(y, static_cast<const float*>(frame_.data), pixels);
}

}  // namespace smolvla::cpu

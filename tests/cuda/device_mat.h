// Matrices in device memory as the backend lays them out, and what they hold, for tests of kernels.
#pragma once

#include <cmath>
#include <random>

#include "cuda/kernels.h"
#include "device_array.h"
#include "runtime/tensor_source.h"

namespace smolvla::cuda {

inline std::vector<float> random_values(size_t count, unsigned seed, float most = 1.0f) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> in(-most, most);
    std::vector<float> values(count);
    for (float& v : values) v = in(random);
    return values;
}

inline uint16_t bf16_bits(float v) {
    const __nv_bfloat16 rounded = __float2bfloat16_rn(v);
    uint16_t bits;
    std::memcpy(&bits, &rounded, 2);
    return bits;
}
inline float as_bf16(float v) { return bf16_to_f32(bf16_bits(v)); }

// Rows of f32 or bf16_rows. New memory is poison (NaN) but for what a row has behind its columns,
// which the backend keeps zero.
class DeviceMat {
public:
    DeviceMat(int rows, int cols, Storage storage)
        : rows_(rows),
          cols_(cols),
          storage_(storage),
          ld_((words_of(cols, storage) + 15) / 16 * 16 + 16),
          words_(size_t(rows) * ld_) {
        std::vector<float> fresh(words_.bytes() / 4, 0.0f);
        for (int r = 0; r < rows; ++r)
            for (int w = 0; w < words_of(cols, storage); ++w) fresh[size_t(r) * ld_ + w] = NAN;
        CHECK(!cudaMemcpy(words_.data(), fresh.data(), words_.bytes(), cudaMemcpyHostToDevice));
    }
    DeviceMat(int rows, int cols, Storage storage, const std::vector<float>& values)
        : DeviceMat(rows, cols, storage) {
        std::vector<float> words = words_.read();
        for (int r = 0; r < rows; ++r)  // the other half of an odd row's last word is zero too
            words[size_t(r) * ld_ + words_of(cols, storage) - 1] = 0.0f;
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < cols; ++c) {
                const float v = values[size_t(r) * cols + c];
                char* row = reinterpret_cast<char*>(&words[size_t(r) * ld_]);
                const uint16_t bits = bf16_bits(v);
                if (storage == Storage::f32)
                    std::memcpy(row + 4 * c, &v, 4);
                else
                    std::memcpy(row + 2 * c, &bits, 2);
            }
        CHECK(!cudaMemcpy(words_.data(), words.data(), words_.bytes(), cudaMemcpyHostToDevice));
    }

    Mat mat() { return {words_.data(), rows_, cols_, ld_, storage_}; }
    // Of i8 the integers, without their scale.
    std::vector<float> values() const {
        const std::vector<float> words = words_.read();
        std::vector<float> out;
        for (int r = 0; r < rows_; ++r)
            for (int c = 0; c < cols_; ++c) {
                const char* row = reinterpret_cast<const char*>(&words[size_t(r) * ld_]);
                if (storage_ == Storage::f32) {
                    float v;
                    std::memcpy(&v, row + 4 * c, 4);
                    out.push_back(v);
                } else if (storage_ == Storage::i8) {
                    out.push_back(static_cast<signed char>(row[c]));
                } else {
                    uint16_t bits;
                    std::memcpy(&bits, row + 2 * c, 2);
                    out.push_back(bf16_to_f32(bits));
                }
            }
        return out;
    }
    float row_scale(int r) const {
        return words_.read()[size_t(r) * ld_ + scale_at(code_words(cols_))];
    }

private:
    int rows_, cols_;
    Storage storage_;
    ptrdiff_t ld_;
    DeviceArray<float> words_;
};

// The largest difference, in units of the largest value wanted; NaN counts as infinite.
inline double error_of(const std::vector<float>& got, const std::vector<double>& want) {
    CHECK(got.size() == want.size());
    double most = 0, scale = 1e-30;
    for (size_t i = 0; i < got.size(); ++i) {
        const double d = std::fabs(double(got[i]) - want[i]);
        most = d <= most ? most : std::isnan(d) ? INFINITY : d;
        scale = std::max(scale, std::fabs(want[i]));
    }
    return most / scale;
}

}  // namespace smolvla::cuda

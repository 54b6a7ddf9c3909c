// Matrices in device memory that notice what does not concern them: a pattern lies in front of the
// rows, between them (ld is more than the columns) and behind them. Read, it is no number; written,
// it shows. AddressSanitizer sees only the ends of an allocation.
#pragma once

#include <cstring>

#include "device_mat.h"
#include "loose.h"

namespace smolvla::cuda {

class GuardedMat {
public:
    // Poison where the values go.
    GuardedMat(int rows, int cols, Storage storage)
        : rows_(rows),
          cols_(cols),
          storage_(storage),
          ld_((words_of(cols, storage) + 3) / 4 * 4 + 4),
          words_(filled(rows, cols, storage, ld_, {})) {}
    GuardedMat(int rows, int cols, Storage storage, const std::vector<float>& values)
        : rows_(rows),
          cols_(cols),
          storage_(storage),
          ld_((words_of(cols, storage) + 3) / 4 * 4 + 4),
          words_(filled(rows, cols, storage, ld_, values)) {}

    // 16-byte aligned rows, as tensor cores want them.
    Mat mat() {
        return {reinterpret_cast<float*>(words_.data()) + kZone, rows_, cols_, ld_, storage_};
    }

    std::vector<float> values() const {
        const std::vector<uint32_t> words = words_.read();
        std::vector<float> out;
        for (int r = 0; r < rows_; ++r)
            for (int c = 0; c < cols_; ++c) {
                const char* row = reinterpret_cast<const char*>(&words[kZone + r * ld_]);
                float v;
                uint16_t half;
                std::memcpy(&half, row + 2 * c, 2);
                if (storage_ == Storage::f32)
                    std::memcpy(&v, row + 4 * c, 4);
                else
                    v = storage_ == Storage::i8 ? float(static_cast<signed char>(row[c]))
                                                : bf16_to_f32(half);
                out.push_back(v);
            }
        return out;
    }
    std::vector<uint32_t> row_words(int r) const {
        const std::vector<uint32_t> words = words_.read();
        const auto begin = words.begin() + ptrdiff_t(kZone) + r * ld_;
        return {begin, begin + words_of(cols_, storage_)};
    }
    bool guards_untouched() const {
        const std::vector<uint32_t> words = words_.read();
        std::vector<char> want(words.size() * 4);
        for (size_t i = 0; i < words.size(); ++i) std::memcpy(&want[4 * i], &kUntouched, 4);
        for (int r = 0; r < rows_; ++r) {
            const size_t at = (kZone + size_t(r) * size_t(ld_)) * 4;
            std::memcpy(&want[at], reinterpret_cast<const char*>(words.data()) + at, used());
        }
        return std::memcmp(want.data(), words.data(), want.size()) == 0;
    }

private:
    static constexpr size_t kZone = 64;

    size_t used() const { return used_bytes(cols_, storage_); }
    static size_t used_bytes(int cols, Storage storage) {
        return storage == Storage::bf16_rows ? size_t(cols) * 2
                                             : size_t(words_of(cols, storage)) * 4;
    }
    static std::vector<uint32_t> filled(int rows, int cols, Storage storage, ptrdiff_t ld,
                                        const std::vector<float>& values) {
        std::vector<uint32_t> words(2 * kZone + size_t(rows) * size_t(ld), kUntouched);
        for (int r = 0; r < rows; ++r) {
            char* row = reinterpret_cast<char*>(&words[kZone + size_t(r) * size_t(ld)]);
            std::memset(row, 0xff, used_bytes(cols, storage));
            for (int c = 0; c < cols && !values.empty(); ++c) {
                const float v = values[size_t(r) * size_t(cols) + size_t(c)];
                const uint16_t half = bf16_bits(v);
                if (storage == Storage::f32)
                    std::memcpy(row + 4 * c, &v, 4);
                else
                    std::memcpy(row + 2 * c, &half, 2);
            }
        }
        return words;
    }

    int rows_, cols_;
    Storage storage_;
    ptrdiff_t ld_;
    DeviceArray<uint32_t> words_;
};

// got[i] is within bounds[i], of which those without a value were not worked out. Says the first
// that is not.
inline bool within(const std::vector<float>& got, const std::vector<Bound>& bounds,
                   const std::string& what) {
    CHECK(got.size() == bounds.size());
    for (size_t i = 0; i < got.size() && i < bounds.size(); ++i) {
        const Bound& b = bounds[i];
        if (std::isnan(b.value) || std::fabs(double(got[i]) - b.value) <= b.allowed) continue;
        std::printf("%s, result %zu: %.9g, expected %.9g within %.2g\n", what.c_str(), i,
                    double(got[i]), b.value, b.allowed);
        return false;
    }
    return true;
}

// The same bits, NaN too.
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

}  // namespace smolvla::cuda

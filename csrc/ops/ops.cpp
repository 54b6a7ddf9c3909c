#include "ops/ops.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "runtime/error.h"

namespace smolvla {

Mat Backend::make_mat(int rows, int cols, Storage storage) {
    // One spare cache line per row: strides that are multiples of 4 KiB would put the 14 rows of a
    // tile into the same L1 set.
    const ptrdiff_t ld = (words_of(cols, storage) + 15) / 16 * 16 + 16;
    return {make_buffer(size_t(rows) * ld), rows, cols, ld, storage};
}

int* Backend::make_ints(size_t count) { return reinterpret_cast<int*>(make_buffer(count)); }

void Backend::write(const float* values, Mat to) {
    for (int r = 0; r < to.rows; ++r) std::copy_n(values + size_t(r) * to.cols, to.cols, to.row(r));
}
void Backend::write(const int* values, size_t count, int* to) { std::copy_n(values, count, to); }

void Backend::read(Mat from, float* values) {
    for (int r = 0; r < from.rows; ++r) {
        float* to = values + size_t(r) * from.cols;
        if (from.storage != Storage::bf16)
            std::copy_n(from.row(r), from.cols, to);
        else
            for (int c = 0; c < from.cols; ++c) to[c] = from.value(r, c);
    }
}

void Backend::rope_store(Mat q, int heads, Mat keys, Mat values, Mat cosine, Mat sine,
                         const int* first, KvStore* kv) {
    rope(q, heads, cosine, sine, first);
    rope(keys, keys.cols / (2 * cosine.cols), cosine, sine, first);
    store_kv(keys, values, kv, first);
}

void Backend::stage(const StageKey&, Body body) { body(); }
void Backend::advance(int* number) { ++*number; }

void Backend::mark(int moment) {
    using namespace std::chrono;
    moments_[moment] = duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}
double Backend::between(int first, int second) const { return moments_[second] - moments_[first]; }

float Mat::value(int r, int column) const {
    if (storage != Storage::bf16) return row(r)[column];
    uint32_t word;
    std::memcpy(&word, row(r) + column / 2, 4);
    return bf16_to_f32(static_cast<uint16_t>(column % 2 == 0 ? word >> 16 : word & 0xffff));
}

Compute parse_compute(const std::string& name) {
    for (Compute c : {Compute::float32, Compute::bfloat16})
        if (name == compute_name(c)) return c;
    fail(ErrorKind::backend, "compute: expected float32 or bfloat16, got %s", name.c_str());
}
const char* compute_name(Compute c) { return c == Compute::float32 ? "float32" : "bfloat16"; }

}  // namespace smolvla

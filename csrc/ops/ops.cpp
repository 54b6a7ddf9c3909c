#include "ops/ops.h"

#include <cstring>

#include "runtime/error.h"

namespace smolvla {

Mat Backend::make_mat(int rows, int cols, Storage storage) {
    // One spare cache line per row: strides that are multiples of 4 KiB would put the 14 rows of a
    // tile into the same L1 set.
    const ptrdiff_t ld = (words_of(cols, storage) + 15) / 16 * 16 + 16;
    return {make_buffer(size_t(rows) * ld), rows, cols, ld, storage};
}

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

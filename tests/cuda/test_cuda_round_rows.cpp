// Rows become the same integers and scales as the CPU's kernels make of them, in every bit: there
// is one definition (smolvla_edge/codes.py, round_rows).
#include <cstring>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "device_mat.h"

using namespace smolvla;
using namespace smolvla::cuda;

namespace {

// Where one rounding more in 127 / max |x| would change a code (about one in ten thousand), ties,
// tiny rows, rows that are not finite.
std::vector<float> awkward_rows(int rows, int columns) {
    std::vector<float> x = random_values(size_t(rows) * columns, 3);
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c) {
            float& v = x[size_t(r) * columns + c];
            const float half = float(c % 254 - 127) + 0.5f;
            switch (r % 20) {
                case 0: v = c == 0 ? 127.0f : half; break;
                case 1: v = half / 3; break;
                case 2: v = 0; break;
                case 3: v = std::ldexp(half, -108); break;
                case 4: v = std::ldexp(half, -106); break;
                case 5: v = c == 7 ? NAN : v; break;
                case 6: v = c == 7 ? -INFINITY : v; break;
                case 7: v = c == 7 ? 1e38f : v; break;
                default: v = std::ldexp(v, r % 60 - 30);
            }
        }
    return x;
}

void test(int rows, int columns, Storage storage) {
    DeviceMat x(rows, columns, storage, awkward_rows(rows, columns)), y(rows, columns, Storage::i8);
    CHECK(!quantize_rows(x.mat(), y.mat(), nullptr));
    const std::vector<float> codes = y.values(), held = x.values();
    const int words = code_words(columns), ld = words_of(columns, Storage::i8);
    std::vector<float> want(size_t(rows) * ld);
    const cpu::Kernels scalar = cpu::choose_kernels("scalar");
    scalar.quantize_rows(held.data(), columns, rows, columns, Storage::f32, want.data(), ld);
    for (int r = 0; r < rows; ++r) {
        const float* row = &want[size_t(r) * ld];
        for (int c = 0; c < columns; ++c)
            CHECK(codes[size_t(r) * columns + c] == reinterpret_cast<const signed char*>(row)[c]);
        const float scale = y.row_scale(r), wanted = row[scale_at(words)];
        CHECK(std::isnan(wanted) ? std::isnan(scale) : scale == wanted);
    }
}

}  // namespace

int main() {
    for (Storage storage : {Storage::f32, Storage::bf16_rows}) {
        test(1000, 300, storage);
        test(1, 33, storage);
    }
    return failures != 0;
}

// Every GEMM against sums in double over the same rounded operands: tiles of every size, tails of
// rows, columns and k, every epilogue, any order of blocks and warps, and the map of 4-bit
// fragments against a search.
#include <algorithm>
#include <set>

#include "cuda/fragments.h"
#include "device_mat.h"

using namespace smolvla;
using namespace smolvla::cuda;

namespace {

enum class Kind { f32, f32_bf16, bf16, i8, i4 };

struct Case {
    Kind kind;
    int rows, columns, depth;          // columns: of the result
    int group = 0;                     // of i4
    bool gated = false, full = false;  // full: every term of the epilogue
    Storage y = Storage::f32;
    int processors = 1;
};

int rounded_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

double silu(double x) { return x / (1 + std::exp(-x)); }
double gelu(double x) {
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

// The weight's row that column c of the result (or, `up`, its second factor) comes from.
int packed_row(int c, bool gated, bool up) { return gated ? c / 8 * 16 + c % 8 + 8 * up : c; }

void check(const Case& c) {
    const int packed = c.gated ? rounded_up(c.columns, 8) * 2 : c.columns;
    const Storage x_storage =
        c.kind == Kind::f32 || c.kind == Kind::f32_bf16 ? Storage::f32 : Storage::bf16_rows;
    const std::vector<float> x_values = random_values(size_t(c.rows) * c.depth, 1);
    DeviceMat x(c.rows, c.depth, x_storage, x_values), x8(c.rows, c.depth, Storage::i8);
    std::vector<float> held = x.values();  // what is multiplied
    std::vector<double> row_scale(size_t(c.rows), 1.0);
    if (c.kind == Kind::i8) {
        CHECK(!quantize_rows(x.mat(), x8.mat(), nullptr));
        held = x8.values();
        for (int r = 0; r < c.rows; ++r) row_scale[size_t(r)] = x8.row_scale(r);
    }

    // W [packed, depth] as numbers, and as it lies.
    std::vector<double> w(size_t(packed) * c.depth);
    std::vector<float> bias = random_values(size_t(2 * packed), 3), scale_of_columns, residual;
    scale_of_columns = random_values(size_t(c.columns), 4);
    residual = random_values(size_t(c.rows) * c.columns, 5);
    const std::vector<float> w_values = random_values(w.size(), 2);
    DeviceArray<float> w_f32(w_values), column_scale(scale_of_columns), biases(bias);
    const int ld = c.kind == Kind::i8 ? rounded_up(c.depth, 16) : rounded_up(c.depth, 8);
    std::vector<uint16_t> bf16(size_t(packed) * ld, 0), bf16_tight(w.size());
    std::vector<int8_t> codes8(size_t(packed) * ld, 0);
    std::vector<float> scales8 = random_values(size_t(packed), 6);
    const int blocks = fragment_blocks(c.depth);
    const int groups = c.group ? (c.depth + c.group - 1) / c.group : 1;
    const int tiles = rounded_up(packed, kFragmentRows) / kFragmentRows;
    std::vector<uint32_t> codes4(size_t(tiles) * blocks * 128, kZeroCodes);
    std::vector<uint32_t> scales4(size_t(tiles) * groups * 8, 0);
    for (int r = 0; r < packed; ++r)
        for (int k = 0; k < c.depth; ++k) {
            const float v = w_values[size_t(r) * c.depth + k];
            double& number = w[size_t(r) * c.depth + k];
            bf16[size_t(r) * ld + k] = bf16_tight[size_t(r) * c.depth + k] = bf16_bits(v);
            number = c.kind == Kind::f32 ? double(v) : double(as_bf16(v));
            if (c.kind == Kind::i8) {
                const int code = int(std::lround(v * 127));
                codes8[size_t(r) * ld + k] = int8_t(code);
                number = code * double(scales8[size_t(r)]);
            }
            if (c.kind == Kind::i4) {
                const int code = int(std::lround(v * 7)), g = k / c.group;
                const CodePlace at = code_place(r, k, blocks);
                codes4[at.word] ^= uint32_t((code + 8) ^ 8) << (4 * at.nibble);
                const __half s = __float2half_rn(0.01f + 0.001f * float((r * 7 + g * 3) % 50));
                const ScalePlace place = scale_place(r, g, groups);
                uint16_t bits;
                std::memcpy(&bits, &s, 2);
                if (k % c.group == 0) scales4[place.word] |= uint32_t(bits) << (16 * place.half);
                number = code * double(__half2float(s));
            }
        }
    DeviceArray<uint16_t> w_bf16(bf16), w_tight(bf16_tight);
    DeviceArray<int8_t> w_i8(codes8);
    DeviceArray<float> w_scale(scales8);
    DeviceArray<uint32_t> w_i4(codes4), w_scale4(scales4);
    DeviceMat y(c.rows, c.columns, c.y);
    DeviceMat res(c.rows, c.columns, Storage::f32, residual);
    DeviceArray<int> one(std::vector<int>{1});

    Epilogue e;
    e.gated = c.gated;
    e.y = y.mat();
    if (c.full) {
        e.bias = biases.data();
        e.bias_row = one.data();
        e.bias_ld = packed;
        e.residual = res.mat().data;
        e.residual_ld = res.mat().ld;
        e.scale = 0.75f;
        if (!c.gated) e.column_scale = column_scale.data(), e.activation = Activation::gelu_tanh;
    }
    cudaError_t status = cudaSuccess;
    switch (c.kind) {
        case Kind::f32:
            status =
                gemm_f32(x.mat(), w_f32.data(), false, packed, c.depth, e, c.processors, nullptr);
            break;
        case Kind::f32_bf16:
            status =
                gemm_f32(x.mat(), w_tight.data(), true, packed, c.depth, e, c.processors, nullptr);
            break;
        case Kind::bf16:
            status =
                gemm_bf16(x.mat(), w_bf16.data(), ld, packed, c.depth, e, c.processors, nullptr);
            break;
        case Kind::i8:
            status = gemm_i8(x8.mat(), w_i8.data(), ld, w_scale.data(), packed, c.depth, e,
                             c.processors, nullptr);
            break;
        case Kind::i4:
            status = gemm_w4(x.mat(), reinterpret_cast<const uint4*>(w_i4.data()), w_scale4.data(),
                             c.group, packed, c.depth, e, c.processors, nullptr);
    }
    CHECK(status == cudaSuccess);

    std::vector<double> want;
    for (int r = 0; r < c.rows; ++r)
        for (int column = 0; column < c.columns; ++column) {
            double part[2] = {0, 0};
            for (int up = 0; up <= int(c.gated); ++up) {
                const size_t row = size_t(packed_row(column, c.gated, up));
                for (int k = 0; k < c.depth; ++k)
                    part[up] += double(held[size_t(r) * c.depth + k]) * w[row * c.depth + k];
                part[up] *= row_scale[size_t(r)];
                if (c.full) part[up] += bias[size_t(packed) + row];
            }
            double value = c.gated ? silu(part[0]) * part[1] : part[0];
            if (c.full && !c.gated) value = gelu(value) * scale_of_columns[size_t(column)];
            if (c.full) value = value * 0.75 + residual[size_t(r) * c.columns + column];
            want.push_back(value);
        }
    const double bound = c.y == Storage::bf16_rows ? 4e-3 : 2e-6;
    const double error = error_of(y.values(), want);
    if (!(error < bound))
        std::printf("kind %d: %d x %d -> %d, group %d, gated %d, full %d: %g\n", int(c.kind),
                    c.rows, c.depth, c.columns, c.group, c.gated, c.full, error);
    CHECK(error < bound);
}

// Every code has a place of its own, and a step of a lane multiplies what the header says.
void test_fragments() {
    const int rows = 48, depth = 192, blocks = fragment_blocks(depth);
    std::set<std::pair<size_t, int>> seen;
    for (int r = 0; r < rows; ++r)
        for (int k = 0; k < depth; ++k) {
            const CodePlace at = code_place(r, k, blocks);
            CHECK(at.word < size_t(rows / 16) * blocks * 128 && at.nibble >= 0 && at.nibble < 8);
            seen.insert({at.word, at.nibble});
        }
    CHECK(seen.size() == size_t(rows) * depth);
    for (int lane = 0; lane < 32; ++lane)
        for (int step = 0; step < 4; ++step) {
            const int g = lane / 4, t = lane % 4, k = 32 * (step / 2) + 8 * t + 4 * (step % 2);
            const size_t word = size_t(lane) * 4 + step;
            const int a[4][2] = {{g, k}, {g + 8, k}, {g, k + 2}, {g + 8, k + 2}};
            for (int i = 0; i < 4; ++i)
                for (int second = 0; second < 2; ++second) {
                    const CodePlace at = code_place(a[i][0], a[i][1] + second, blocks);
                    CHECK(at.word == word && at.nibble == i + 4 * second);
                }
        }
}

}  // namespace

int main() {
    test_fragments();
    CHECK(!prepare_gemm_bf16() && !prepare_gemm_i8() && !prepare_gemm_w4());
    for (Kind kind : {Kind::f32, Kind::f32_bf16, Kind::bf16, Kind::i8}) {
        for (int processors : {1, 4, 1000}) {  // large, middle and small tiles
            check({kind, 129, 130, 200, 0, false, true, Storage::f32, processors});
            check({kind, 50, 72, 144, 0, true, true, Storage::f32, processors});
        }
        for (int rows : {1, 16, 65})
            for (int depth : {1, 31, 64, 720}) check({kind, rows, 33, depth});
        check({kind, 50, 40, 96, 0, true, false, Storage::bf16_rows});
        check({kind, 7, 5, 40, 0, false, true, Storage::bf16_rows});
    }
    for (int group : {32, 64, 128}) {
        for (int rows : {1, 8, 9, 50, 65}) check({Kind::i4, rows, 40, 144, group});
        for (int processors : {1, 2, 1000})
            check({Kind::i4, 50, 72, 720, group, false, true, Storage::f32, processors});
        check({Kind::i4, 50, 44, 200, group, true, true, Storage::bf16_rows});
        check({Kind::i4, 50, 8, 33, group, true});
    }
    in_every_order([] {
        check({Kind::bf16, 70, 66, 136, 0, false, true});
        check({Kind::i8, 70, 66, 136, 0, false, true});
        check({Kind::i4, 50, 48, 200, 32, true, true});
        check({Kind::f32, 70, 66, 40, 0, true, true});
    });
    return failures != 0;
}

// The parts of the library for ONNX Runtime that need no runtime. With one, the whole of it is
// tested by tests/unit/test_ort_*.py.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/linear.h"
#include "cpu/pack_codes.h"
#include "isas.h"
#include "ort/columns.h"
#include "ort/scratch.h"
#include "ort/session_workers.h"
#include "runtime/error.h"

namespace smolvla::ort {
namespace {

using Rows = std::vector<std::vector<int>>;  // 0 and 1

std::vector<Columns> parts_of(const Rows& rows) {
    std::vector<uint8_t> mask;
    for (const std::vector<int>& row : rows)
        for (int readable : row) mask.push_back(static_cast<uint8_t>(readable));
    const int columns = rows.empty() ? 0 : static_cast<int>(rows[0].size());
    return readable(mask.data(), static_cast<int>(rows.size()), columns);
}

// Every row reads what its part says, and nothing else.
void check_parts(const Rows& rows, size_t parts) {
    const std::vector<Columns> found = parts_of(rows);
    CHECK(found.size() == parts);
    size_t row = 0;
    for (const Columns& part : found) {
        CHECK(part.first == static_cast<int>(row));
        CHECK(std::is_sorted(part.columns.begin(), part.columns.end()));
        for (int length : part.lengths) {
            std::vector<int> read(rows[row].size());
            for (int i = 0; i < length; ++i) read[size_t(part.columns[size_t(i)])] = 1;
            CHECK(read == rows[row++]);
        }
    }
    CHECK(row == rows.size());
}

void test_masks() {
    // A prefix with holes, then causal: one part, also where rows come in another order.
    check_parts({{1, 0, 1, 1, 0, 0}, {1, 0, 1, 1, 1, 0}, {1, 0, 1, 1, 1, 1}}, 1);
    check_parts({{1, 0, 1, 1, 1, 1}, {1, 0, 1, 1, 0, 0}, {1, 0, 1, 1, 1, 0}}, 1);
    check_parts({{1, 1}, {1, 1}, {1, 1}}, 1);
    check_parts({{1}}, 1);
    // A column that comes before one that others read begins a part.
    check_parts({{0, 1}, {1, 1}}, 2);
    check_parts({{1, 0}, {0, 1}, {1, 0}}, 3);
    check_parts({{1, 1, 0}, {1, 0, 0}, {1, 0, 1}}, 2);
    check_parts(Rows(), 0);
    CHECK_THROWS(parts_of({{1, 0}, {0, 0}}), input);
    CHECK_THROWS(parts_of(Rows(1)), input);
}

// Nobody writes where another works.
void test_scratch() {
    std::atomic<int> disturbed{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
        threads.emplace_back([t, &disturbed] {
            for (int turn = 0; turn < 500; ++turn) {
                const size_t count = 17 + size_t((turn * 7 + t) % 500);
                Scratch scratch(2 * Scratch::room(count));
                float* pieces[] = {scratch.floats(count), scratch.floats(count)};
                for (int piece = 0; piece < 2; ++piece)
                    std::fill_n(pieces[piece], count, static_cast<float>(8 * turn + 2 * t + piece));
                std::this_thread::yield();
                for (int piece = 0; piece < 2; ++piece)
                    disturbed += std::count(pieces[piece], pieces[piece] + count,
                                            static_cast<float>(8 * turn + 2 * t + piece)) !=
                                 static_cast<ptrdiff_t>(count);
            }
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(disturbed == 0);

    Scratch scratch(32);
    CHECK(reinterpret_cast<uintptr_t>(scratch.floats(1)) % 64 == 0);
    CHECK(reinterpret_cast<uintptr_t>(scratch.floats(1)) % 64 == 0);
    CHECK_THROWS(scratch.floats(1 << 20), backend);
}

// A weight as ONNX has it: codes [in][out], of group 0 in int8, and scales [groups][out].
struct Weight {
    int in, out, group;
    std::vector<int> codes;
    std::vector<float> scales;
    std::vector<uint8_t> bytes;

    Weight(int in, int out, int group)
        : in(in),
          out(out),
          group(group),
          codes(size_t(in) * out),
          scales(size_t(groups()) * out),
          bytes(group ? (codes.size() + 1) / 2 : codes.size()) {
        std::mt19937 random(static_cast<unsigned>(in * 7 + out + group));
        for (size_t i = 0; i < codes.size(); ++i) {
            codes[i] = group ? static_cast<int>(random() % 16) - 8
                             : static_cast<int>(random() % 255) - 127;
            if (group)
                bytes[i / 2] |= static_cast<uint8_t>((codes[i] & 15) << (i % 2 * 4));
            else
                bytes[i] = static_cast<uint8_t>(codes[i]);
        }
        for (float& scale : scales) scale = static_cast<float>(random() % 1024) * 0x1p-14f;
    }
    int groups() const { return group ? cpu::ceil_div(in, group) : 1; }
    cpu::OnnxCodes onnx() const { return {bytes.data(), scales.data(), in, out, group}; }

    // What a row of integers gives: exact sums, each group added with one rounding.
    float times(const std::vector<int>& row, int column) const {
        const int size = group ? group : in;
        float y = 0;
        for (int g = 0; g < groups(); ++g) {
            int64_t sum = 0;
            for (int k = g * size; k < std::min(in, (g + 1) * size); ++k)
                sum += int64_t{row[size_t(k)]} * codes[size_t(k) * out + column];
            y = std::fmaf(static_cast<float>(sum), scales[size_t(g) * out + column], y);
        }
        return y;
    }
};

void check_codes(const cpu::Kernels& kernels, const Weight& weight, int rows) {
    const cpu::OnnxCodes from = weight.onnx();
    const Block block = make_block(cpu::packed_bytes(from));
    const cpu::DotKernels& dot = weight.group ? *kernels.dot4 : *kernels.dot8;
    const PackedLinear w = cpu::pack_onnx_codes(from, dot.order, block.get());

    // Whole numbers up to 127, which every row has: they are their own codes, under the scale 1.
    std::vector<float> x(size_t(rows) * weight.in), y(size_t(rows) * weight.out);
    std::mt19937 random(5);
    for (float& value : x) value = static_cast<float>(static_cast<int>(random() % 255) - 127);
    for (int r = 0; r < rows; ++r) x[size_t(r) * weight.in] = 127;

    CallerAlone alone;
    const std::vector<float*> none;
    const cpu::Workplace place{kernels, alone, none};
    Scratch scratch(Scratch::room(size_t(rows) * cpu::coded_ld(weight.in)));
    const Mat integers = cpu::quantize(place, {x.data(), rows, weight.in, weight.in},
                                       scratch.floats(size_t(rows) * cpu::coded_ld(weight.in)));
    cpu::run_linear(place, integers, w, {y.data(), rows, weight.out, weight.out}, {}, Storage::i8);
    for (int r = 0; r < rows; ++r) {
        const auto row = x.begin() + ptrdiff_t{r} * weight.in;
        const std::vector<int> codes(row, row + weight.in);
        for (int c = 0; c < weight.out; ++c)
            CHECK(y[size_t(r) * weight.out + c] == weight.times(codes, c));
    }
}

void test_codes() {
    for (const std::string& isa : runnable_isas()) {
        const cpu::Kernels kernels = cpu::choose_kernels(isa);
        for (int group : {0, 32, 64, 128})
            for (const auto& [in, out] : {std::pair{1, 1}, {31, 33}, {130, 64}, {353, 65}})
                check_codes(kernels, Weight(in, out, group), 5);
    }
    const cpu::CodeOrder order = cpu::choose_kernels("scalar").dot8->order;
    Weight low(8, 40, 0), negative(8, 40, 0);
    const Block block = make_block(cpu::packed_bytes(low.onnx()));
    low.bytes.back() = 128;  // -128
    CHECK_THROWS(cpu::pack_onnx_codes(low.onnx(), order, block.get()), checkpoint);
    negative.scales.back() = -1;
    CHECK_THROWS(cpu::pack_onnx_codes(negative.onnx(), order, block.get()), checkpoint);
}

}  // namespace
}  // namespace smolvla::ort

int main() {
    smolvla::ort::test_masks();
    smolvla::ort::test_scratch();
    smolvla::ort::test_codes();
    return report("ort");
}

// Weights of every format as they lie in device memory, element for element against what the file
// holds: stacked and gated, with a last group that is short, of sizes that no tile divides.
#include <algorithm>

#include "cuda/status.h"
#include "cuda/weights.h"
#include "guarded_mat.h"
#include "tensors_on_disk.h"

using namespace smolvla;
using namespace smolvla::cuda;

namespace {

enum class Kept { f32, bf16, f16, mixed, i8, i4 };

struct Case {
    Kept kept;
    int in;
    std::vector<int> out;
    bool gated = false, exact = false;
    int group = 0;  // of i4
};

uint16_t half_bits(float v) {
    const __half rounded = __float2half_rn(v);
    uint16_t bits;
    std::memcpy(&bits, &rounded, 2);
    return bits;
}

// What a file holds: numbers of floats, or codes and their scales. [part][row * in + k].
struct Held {
    std::vector<std::vector<float>> numbers, scales, biases;
};

Held fill(TensorsOnDisk& file, const Case& c) {
    Held held;
    for (size_t part = 0; part < c.out.size(); ++part) {
        const std::string name = std::to_string(part);
        const int64_t rows = c.out[part], in = c.in;
        std::vector<float> numbers = random_values(size_t(rows * in), unsigned(10 + part));
        const auto bits = [&](auto to) {
            std::vector<uint16_t> all;
            for (float& v : numbers) all.push_back(to(v));
            return all;
        };
        switch (c.kept == Kept::mixed ? (part % 2 ? Kept::f32 : Kept::bf16) : c.kept) {
            case Kept::bf16:
                file.add(name, DType::bf16, {rows, in}, bits(bf16_bits));
                for (float& v : numbers) v = as_bf16(v);
                break;
            case Kept::f16:
                file.add(name, DType::f16, {rows, in}, bits(half_bits));
                for (float& v : numbers) v = f16_to_f32(half_bits(v));
                break;
            case Kept::i8: {
                std::vector<int8_t> codes;
                for (float& v : numbers) codes.push_back(int8_t(v = std::nearbyint(v * 127)));
                file.add(name, DType::i8, {rows, in}, codes);
                held.scales.push_back(random_values(size_t(rows), unsigned(20 + part)));
                for (float& s : held.scales.back()) s = std::fabs(s);
                file.add(name + ".scale", DType::f32, {rows}, held.scales.back());
                break;
            }
            case Kept::i4: {
                const int64_t groups = (in + c.group - 1) / c.group, pitch = (in + 1) / 2;
                std::vector<uint8_t> bytes(size_t(rows * pitch), 0);
                for (int64_t i = 0; i < rows * in; ++i) {
                    float& v = numbers[size_t(i)];
                    v = std::nearbyint(v * 7.5f - 0.5f);  // -8 to 7
                    bytes[size_t(i / in * pitch + i % in / 2)] |=
                        uint8_t((int(v) + 8) << (i % in % 2 * 4));
                }
                file.add(name, DType::u8, {rows, pitch}, bytes);
                std::vector<uint16_t> halves;
                held.scales.emplace_back();
                for (float v : random_values(size_t(rows * groups), unsigned(20 + part))) {
                    halves.push_back(half_bits(std::fabs(v)));
                    held.scales.back().push_back(f16_to_f32(halves.back()));
                }
                file.add(name + ".scale", DType::f16, {rows, groups}, halves);
                break;
            }
            default: file.add(name, DType::f32, {rows, in}, numbers);
        }
        held.numbers.push_back(numbers);
        held.biases.push_back(random_values(size_t(rows), unsigned(30 + part)));
        file.add("b" + name, DType::f32, {rows}, held.biases.back());
    }
    return held;
}

// What the header says of row r: where two weights are gated, 8 rows of one and 8 of the other.
struct Origin {
    size_t part, row;
    bool there;
};
Origin origin(const Case& c, int r) {
    if (c.gated) {
        const int row = r / 16 * 8 + r % 8;
        return {size_t(r / 8 % 2), size_t(row), row < c.out[0]};
    }
    size_t part = 0;
    while (part < c.out.size() && r >= c.out[part]) r -= c.out[part++];
    return {part, size_t(r), part < c.out.size()};
}

template <class T>
std::vector<T> device_values(const void* from, size_t count) {
    std::vector<T> values(count);
    CHECK(!cudaDeviceSynchronize());
    CHECK(!cudaMemcpy(values.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
}

// [columns, in] as the kernels read it: numbers or codes. What lies beyond `in` must be zero.
std::vector<float> as_it_lies(const DeviceLinear& w) {
    std::vector<float> all(size_t(w.columns) * w.in, NAN);
    const size_t count = size_t(w.columns) * w.ld;
    const auto rows = [&](const auto& values, auto to) {
        for (int r = 0; r < w.columns; ++r)
            for (int k = 0; k < w.ld; ++k) {
                const float v = to(values[size_t(r) * w.ld + k]);
                if (k < w.in) all[size_t(r) * w.in + k] = v;
                CHECK(k < w.in || v == 0);
            }
    };
    switch (w.format) {
        case Format::f32:
            rows(device_values<float>(w.data, count), [](float v) { return v; });
            break;
        case Format::bf16: rows(device_values<uint16_t>(w.data, count), bf16_to_f32); break;
        case Format::i8:
            rows(device_values<int8_t>(w.data, count), [](int8_t v) { return float(v); });
            break;
        case Format::i4: {
            // The formula of cuda/fragments.h from words to elements, not the other way.
            const int blocks = (w.in + 63) / 64, tiles = w.columns / 16;
            CHECK(w.columns % 16 == 0);
            const auto words = device_values<uint32_t>(w.data, size_t(tiles) * blocks * 128);
            for (size_t i = 0; i < words.size(); ++i)
                for (int nibble = 0; nibble < 8; ++nibble) {
                    const int step = int(i % 4), lane = int(i / 4 % 32),
                              block = int(i / 128) % blocks;
                    const int a = nibble % 4, tile = int(i / 128) / blocks;
                    const int r = tile * 16 + lane / 4 + a % 2 * 8;
                    const int k = block * 64 + step / 2 * 32 + lane % 4 * 8 + step % 2 * 4 +
                                  a / 2 * 2 + nibble / 4;
                    const float v = float(int(words[i] >> (4 * nibble) & 15) - 8);
                    if (k < w.in) all[size_t(r) * w.in + k] = v;
                    CHECK(k < w.in || v == 0);
                }
        }
    }
    return all;
}

float scale_as_it_lies(const DeviceLinear& w, int r, int group, int groups) {
    if (w.format == Format::i8) return device_values<float>(w.scales, size_t(w.columns))[size_t(r)];
    const auto words = device_values<uint32_t>(w.scales, size_t(w.columns) / 16 * groups * 8);
    const uint32_t word = words[(size_t(r / 16) * groups + group) * 8 + r % 8];
    return f16_to_f32(uint16_t(r % 16 < 8 ? word : word >> 16));
}

struct Loaded {
    DeviceMemory memory;
    DeviceLinear w;
    explicit Loaded(TensorsOnDisk& file, const Case& c, bool biases = true) {
        std::vector<std::string> names, bias_names;
        for (size_t part = 0; part < c.out.size(); ++part) {
            names.push_back(std::to_string(part));
            if (biases) bias_names.push_back("b" + std::to_string(part));
        }
        const TensorSource source(file.entries());
        w = upload_linear(memory, source, names, bias_names, c.in, c.out, c.gated, c.exact);
    }
};

void check_case(const Case& c) {
    TensorsOnDisk file;
    const Held held = fill(file, c);
    const Loaded loaded(file, c);
    const DeviceLinear& w = loaded.w;
    const Format format = c.kept == Kept::i8   ? Format::i8
                          : c.kept == Kept::i4 ? Format::i4
                          : c.kept == Kept::bf16 || (c.kept == Kept::mixed && c.out.size() == 1)
                              ? Format::bf16
                              : Format::f32;
    CHECK(w.format == format && w.in == c.in && w.gated == c.gated);
    int rows = 0;
    for (int out : c.out) rows += out;
    CHECK(w.out == (c.gated ? c.out[0] : rows));
    CHECK(w.columns >= rows && w.columns % (c.gated ? 16 : 1) == 0);
    CHECK(w.bytes > 0 && w.bytes <= loaded.memory.used_bytes());
    CHECK(reinterpret_cast<uintptr_t>(w.data) % 16 == 0);  // copies of 16 bytes begin there
    if (w.format == Format::i8) CHECK(w.ld % 16 == 0);
    if (w.format == Format::bf16) CHECK(c.exact ? w.ld == w.in : w.ld % 8 == 0);

    const std::vector<float> got = as_it_lies(w);
    const std::vector<float> bias = device_values<float>(w.bias, size_t(w.columns));
    const int groups = c.kept == Kept::i4 ? (c.in + c.group - 1) / c.group : 1;
    for (int r = 0; r < w.columns; ++r) {
        const Origin from = origin(c, r);
        for (int k = 0; k < c.in; ++k)
            CHECK(got[size_t(r) * c.in + k] ==
                  (from.there ? held.numbers[from.part][from.row * c.in + size_t(k)] : 0.0f));
        CHECK(bias[size_t(r)] == (from.there ? held.biases[from.part][from.row] : 0.0f));
        for (int g = 0; g < groups && !held.scales.empty(); ++g)
            CHECK(scale_as_it_lies(w, r, g, groups) ==
                  (from.there ? held.scales[from.part][from.row * size_t(groups) + size_t(g)]
                              : 0.0f));
    }
}

// Codes and scales that would make nonsense of a sum.
void test_refusals() {
    const auto load = [](DType dtype, const std::vector<int8_t>& codes, const auto& scales,
                         const std::vector<int64_t>& shape, const std::vector<int64_t>& groups) {
        TensorsOnDisk file;
        file.add("0", dtype, shape, codes);
        file.add("0.scale", groups.size() == 1 ? DType::f32 : DType::f16, groups, scales);
        Case c{dtype == DType::i8 ? Kept::i8 : Kept::i4, 64, {2}};
        Loaded loaded(file, c, false);
    };
    std::vector<int8_t> codes(128, 5);
    using Floats = std::vector<float>;
    using Halves = std::vector<uint16_t>;
    load(DType::i8, codes, Floats{0, 2}, {2, 64}, {2});
    for (float bad : {-1.0f, INFINITY, NAN})
        CHECK_THROWS(load(DType::i8, codes, Floats{1, bad}, {2, 64}, {2}), checkpoint);
    codes[100] = -128;
    CHECK_THROWS(load(DType::i8, codes, Floats{1, 1}, {2, 64}, {2}), checkpoint);
    codes.resize(64);
    load(DType::u8, codes, Halves{0, 0x3c00, 1, 0x7bff}, {2, 32}, {2, 2});
    for (uint16_t bad : {0xbc00, 0x7c00, 0x7e00})  // -1, infinity, NaN
        CHECK_THROWS(load(DType::u8, codes, Halves{1, 1, 1, bad}, {2, 32}, {2, 2}), checkpoint);
}

}  // namespace

int main() {
    for (Kept kept : {Kept::f32, Kept::bf16, Kept::f16, Kept::mixed, Kept::i8, Kept::i4})
        for (int group : {32, 64, 128}) {
            if (kept != Kept::i4 && group != 32) continue;
            for (bool exact : {false, true})
                for (int in : {1, 15, 33, 64, 100, 200}) {
                    // A scale's shape tells the group: of rows shorter than two, 32 is meant.
                    if (kept == Kept::i4 && (in + 31) / 32 == (in + group - 1) / group &&
                        group != 32)
                        continue;
                    check_case({kept, in, {5}, false, exact, group});
                    check_case({kept, in, {16, 7, 3}, false, exact, group});
                    for (int out : {1, 8, 13, 24})
                        check_case({kept, in, {out, out}, true, exact, group});
                }
        }
    test_refusals();
    CHECK(emulator::allocations_in_use() == 0);
    return report("cuda_weights");
}

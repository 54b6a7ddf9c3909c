// Operations on rows: beside the CPU's for the same bits where the arithmetic is the same, else
// within bounds derived from the roundings; odd sizes, patterns around everything.
#include <algorithm>
#include <tuple>

#include "cpu/isa.h"
#include "cpu/rows.h"
#include "guarded_mat.h"

using namespace smolvla;
using namespace smolvla::cuda;

namespace {

constexpr float kNormEps = 1e-5f;
constexpr int kWidths[] = {1, 2, 15, 31, 32, 33, 64, 129, 720, 961};

std::string name_of(const char* operation, int rows, int cols, Storage y) {
    return std::string(operation) + " " + std::to_string(rows) + " x " + std::to_string(cols) +
           ", storage " + std::to_string(int(y));
}

// --- norms ---------------------------------------------------------------------------------------

// A lane sums cols / 32 terms, and 5 steps join the lanes.
std::vector<Bound> normed(int cols, const std::vector<float>& x, const std::vector<float>& weight,
                          const std::vector<float>* bias, Storage y) {
    std::vector<Bound> bounds;
    for (size_t at = 0; at < x.size(); at += size_t(cols)) {
        const float* row = &x[at];
        double mean = 0, square = 0, size = 0;
        for (int c = 0; c < cols && bias; ++c) mean += double(row[c]) / cols;
        for (int c = 0; c < cols; ++c) square += std::pow(row[c] - mean, 2) / cols;
        for (int c = 0; c < cols; ++c) size = std::max(size, std::fabs(double(row[c])));
        const double root = std::sqrt(square + double(kNormEps));
        for (int c = 0; c < cols; ++c) {
            const double scaled = (row[c] - mean) / root * weight[size_t(c)];
            const double value = scaled + (bias ? double((*bias)[size_t(c)]) : 0.0);
            const double moved = (size + std::fabs(mean)) / root * std::fabs(weight[size_t(c)]);
            const Bound b{value, (cols / 32 + 16) * kEps * (moved + std::fabs(value)) * 1.01};
            bounds.push_back(b.stored(y));
        }
    }
    return bounds;
}

void test_norm(int rows, int cols, bool layer) {
    const std::vector<float> values = randoms(size_t(rows) * cols, 1, 3.0f);
    const std::vector<float> w = randoms(size_t(cols), 2), b = randoms(size_t(cols), 3);
    GuardedMat x(rows, cols, Storage::f32, values);
    DeviceArray<float> weight(w), bias(b);
    const float* shift = layer ? bias.data() : nullptr;
    const auto run = [&](GuardedMat& y) {
        CHECK(!norm(x.mat(), weight.data(), shift, layer, kNormEps, y.mat(), nullptr));
        CHECK(y.guards_untouched() && x.guards_untouched());
    };
    std::vector<float> plain;
    for (Storage storage : {Storage::f32, Storage::bf16_rows}) {
        GuardedMat y(rows, cols, storage);
        run(y);
        const std::vector<float> got = y.values();
        CHECK(within(got, normed(cols, values, w, layer ? &b : nullptr, storage),
                     name_of(layer ? "layer_norm" : "rms_norm", rows, cols, storage)));
        if (storage == Storage::f32) plain = got;
        for (size_t i = 0; i < got.size() && storage != Storage::f32; ++i)
            CHECK(got[i] == as_bf16(plain[i]));
    }
    // Integers of what came out as floats.
    GuardedMat codes(rows, cols, Storage::i8), two_steps(rows, cols, Storage::i8);
    GuardedMat floats(rows, cols, Storage::f32, plain);
    run(codes);
    CHECK(!quantize_rows(floats.mat(), two_steps.mat(), nullptr));
    for (int r = 0; r < rows; ++r) CHECK(codes.row_words(r) == two_steps.row_words(r));
}

// --- integers ------------------------------------------------------------------------------------

// Codes and scale are the CPU's, bit for bit. Its sums between them are nobody's here: they stay.
void test_quantize(int cols, Storage storage) {
    const int rows = 9, words = code_words(cols);
    std::vector<float> values = randoms(size_t(rows) * cols, 5, 3.0f);
    for (int c = 0; c < cols; ++c) {
        const auto at = [&](int r) -> float& { return values[size_t(r) * cols + c]; };
        at(1) = 0;
        at(2) = std::ldexp(at(2), -120);  // too small for a scale
        if (c == cols / 2) at(3) = NAN;
        if (c == cols - 1) at(4) = -INFINITY;
        at(5) = c % 2 ? 127.0f : 0.5f + float(c % 126);  // ties
        at(6) = std::ldexp(at(6), 120);
        at(7) = c == 0 ? 0x1p-100f : 0.0f;  // the smallest that has one
        at(8) = -0.0f;
    }
    for (float& v : values)
        if (storage == Storage::bf16_rows && std::isfinite(v)) v = as_bf16(v);
    GuardedMat x(rows, cols, storage, values), y(rows, cols, Storage::i8);
    CHECK(!quantize_rows(x.mat(), y.mat(), nullptr));
    CHECK(y.guards_untouched() && x.guards_untouched());
    std::vector<float> cpu(size_t(rows) * words_of(cols, Storage::i8));
    const ptrdiff_t ld = words_of(cols, Storage::i8);
    cpu::choose_kernels("scalar").quantize_rows(values.data(), cols, rows, cols, Storage::f32,
                                                cpu.data(), ld);
    for (int r = 0; r < rows; ++r) {
        const std::vector<uint32_t> got = y.row_words(r);
        const float* want = &cpu[size_t(r * ld)];
        for (int word = 0; word < words; ++word) CHECK(got[size_t(word)] == bits_of(want[word]));
        for (int word = words; word < scale_at(words); ++word)
            CHECK(got[size_t(word)] == 0xffffffff);
        const float scale = float_of(got[size_t(scale_at(words))]);
        CHECK(std::isnan(scale) == (r == 3 || r == 4));
        CHECK(scale == want[scale_at(words)] || std::isnan(want[scale_at(words)]));
    }
}

// --- rotation, and the way into the store
// ------------------------------------------------------------

struct Angles {
    const int half;
    std::vector<float> co, si;
    GuardedMat cosine, sine;
    Angles(int positions, int half)
        : half(half),
          co(of(positions, half, 0)),
          si(of(positions, half, 1)),
          cosine(positions, half, Storage::f32, co),
          sine(positions, half, Storage::f32, si) {}

    // Of a host's row of heads, as the CPU does it.
    void rotate(float* row, int heads, int position) const {
        const size_t at = size_t(position) * half;
        cpu::choose_kernels("scalar").rope(row, heads, 2 * half, &co[at], &si[at]);
    }

private:
    static std::vector<float> of(int positions, int half, int which) {
        std::vector<float> all;
        for (int p = 0; p < positions; ++p)
            for (int i = 0; i < half; ++i) {
                const float angle = float(p) / float(i + 1);
                all.push_back(which ? std::sin(angle) : std::cos(angle));
            }
        return all;
    }
};

// Random rows as a matrix of this storage holds them.
std::vector<float> held(int rows, int cols, unsigned seed, Storage storage) {
    std::vector<float> values = randoms(size_t(rows) * cols, seed);
    for (float& v : values) v = storage == Storage::f32 ? v : as_bf16(v);
    return values;
}

void test_rope(int rows, int heads, int dim, int first, Storage storage) {
    const int cols = heads * dim;
    std::vector<float> values = held(rows, cols, 6, storage);
    Angles angles(std::max(first, 0) + rows, dim / 2);
    GuardedMat x(rows, cols, storage, values);
    DeviceArray<int> start(std::vector<int>{first});
    CHECK(!rope(x.mat(), heads, angles.cosine.mat(), angles.sine.mat(),
                first < 0 ? nullptr : start.data(), nullptr));
    CHECK(x.guards_untouched());
    for (int r = 0; r < rows; ++r)
        angles.rotate(&values[size_t(r) * cols], heads, std::max(first, 0) + r);
    for (float& v : values) v = storage == Storage::f32 ? v : as_bf16(v);
    CHECK(same_bits(x.values(), values));
}

// In one launch what rope, rope and store_kv do in three, in every bit. Into a store of float32
// only rows of float32 go.
template <class T>
void test_rope_store(int rows, int heads, int kv_heads, int dim, int first, Storage storage) {
    const int capacity = first + rows + 3, width = kv_heads * dim;
    Angles angles(first + rows, dim / 2);
    DeviceArray<int> start(std::vector<int>{first});
    const auto run = [&](bool together) {
        GuardedMat q(rows, heads * dim, storage, held(rows, heads * dim, 12, storage));
        GuardedMat k(rows, width, storage, held(rows, width, 13, storage));
        GuardedMat v(rows, width, storage, held(rows, width, 14, storage));
        const std::vector<T> empty(size_t(capacity) * width, T(77));
        DeviceArray<T> keys(empty), values(empty);
        const DeviceKv kv{keys.data(), values.data(), kv_heads, dim, capacity, sizeof(T) == 2};
        const Mat co = angles.cosine.mat(), si = angles.sine.mat();
        if (together) {
            CHECK(!rope_store(q.mat(), heads, k.mat(), v.mat(), co, si, start.data(), kv, nullptr));
        } else {
            CHECK(!rope(q.mat(), heads, co, si, start.data(), nullptr));
            CHECK(!rope(k.mat(), kv_heads, co, si, start.data(), nullptr));
            CHECK(!store_kv(k.mat(), v.mat(), kv, start.data(), nullptr));
        }
        CHECK(q.guards_untouched() && k.guards_untouched() && v.guards_untouched());
        return std::make_tuple(q.values(), k.values(), v.values(), keys.read(), values.read());
    };
    CHECK(run(true) == run(false));
}

// --- copies --------------------------------------------------------------------------------------

void test_copy(int rows, int cols, Storage from, Storage to) {
    const float scale = 0.7f;
    for (int padded : {cols, cols + 1, (cols + 63) / 64 * 64}) {
        const std::vector<float> values = randoms(size_t(rows) * cols, 7);
        GuardedMat x(rows, cols, from, values), y(rows, padded, to);
        Mat narrow = y.mat();
        narrow.cols = cols;
        CHECK(!copy_rows(x.mat(), scale, narrow, padded, nullptr));
        CHECK(y.guards_untouched() && x.guards_untouched());
        const std::vector<float> got = y.values(), from_x = x.values();
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < padded; ++c) {
                float want = c < cols ? from_x[size_t(r) * cols + c] * scale : 0.0f;
                if (to != Storage::f32) want = as_bf16(want);
                CHECK(got[size_t(r) * padded + c] == want);
            }
    }
}

// Rows of a grid of side x side become squares of it, as the CPU's backend puts them.
void test_pixel_shuffle(int side, int scale, int cols, Storage from, Storage to) {
    const int across = side / scale, rows = across * across;
    const std::vector<float> values = randoms(size_t(side) * side * cols, 8);
    GuardedMat x(side * side, cols, from, values), y(rows, scale * scale * cols, to);
    CHECK(!pixel_shuffle(x.mat(), side, scale, y.mat(), nullptr));
    CHECK(y.guards_untouched() && x.guards_untouched());
    const auto cpu = make_cpu_backend(1 << 20, 16 << 20, 1, "scalar", Compute::float32);
    Mat in = cpu->make_mat(side * side, cols), out = cpu->make_mat(rows, scale * scale * cols);
    std::vector<float> want(size_t(rows) * out.cols);
    cpu->write(x.values().data(), in);
    cpu->pixel_shuffle(in, side, scale, out);
    cpu->read(out, want.data());
    for (float& v : want) v = to == Storage::f32 ? v : as_bf16(v);
    CHECK(same_bits(y.values(), want));
}

// --- the flow ------------------------------------------------------------------------------------

// Steps of a plan, with the number of the step in device memory; the CPU's bits at each. With
// `second` those of a solver that looks at the velocity before.
void test_flow(int rows, int cols, bool pulled, bool second) {
    constexpr int kSteps = 4;
    const std::vector<float> noise = randoms(size_t(rows) * cols, 9);
    const std::vector<float> before = randoms(noise.size(), 10);
    std::vector<float> plan, weights = randoms(size_t(rows), 11);
    weights[0] = 0;
    std::vector<float> read;  // of the plan, by the GPU
    const int numbers = second ? 5 : 3;
    for (int k = 0; k < kSteps; ++k) {
        const float t = 1 - 0.25f * float(k);
        plan.insert(plan.end(), {-0.25f, t, 1.5f * float(k + 1), 1.5f + float(k), -0.7f});
        read.insert(read.end(), plan.end() - 5, plan.end() - 5 + numbers);
    }
    GuardedMat x(rows, cols, Storage::f32, noise), previous(rows, cols, Storage::f32, before);
    GuardedMat schedule(kSteps, numbers, Storage::f32, read);
    std::vector<float> last_want = randoms(noise.size(), 12);
    GuardedMat last(rows, cols, Storage::f32, last_want);
    DeviceArray<float> weight(weights);
    DeviceArray<int> step(std::vector<int>{0});
    Pull pull, cpu_pull;
    if (pulled) {
        pull = {previous.mat(), weight.data()};
        cpu_pull = {{const_cast<float*>(before.data()), rows, cols, cols}, weights.data()};
    }
    std::vector<float> want = noise;
    for (int k = 0; k < kSteps; ++k) {
        std::vector<float> velocity = randoms(noise.size(), unsigned(20 + k));
        GuardedMat v(rows, cols, Storage::f32, velocity);
        CHECK(!flow_update(x.mat(), v.mat(), schedule.mat(), step.data(), pull,
                           second ? last.mat() : Mat{}, nullptr));
        CHECK(!advance(step.data(), nullptr));
        cpu::flow_update({want.data(), rows, cols, cols}, {velocity.data(), rows, cols, cols},
                         &plan[size_t(5 * k)], cpu_pull,
                         second ? Mat{last_want.data(), rows, cols, cols} : Mat{});
        CHECK(same_bits(x.values(), want));
        CHECK(same_bits(last.values(), last_want));
        CHECK(v.guards_untouched() && same_bits(v.values(), velocity));
    }
    CHECK(x.guards_untouched() && previous.guards_untouched() && last.guards_untouched());
    CHECK(step.read() == std::vector<int>{kSteps});
}

}  // namespace

int main() {
    for (int cols : kWidths) {
        for (int rows : {1, 4, 5, 51})
            for (bool layer : {true, false}) test_norm(rows, cols, layer);
        for (Storage storage : {Storage::f32, Storage::bf16_rows}) test_quantize(cols, storage);
    }
    for (Storage from : {Storage::f32, Storage::bf16_rows}) {
        for (int first : {-1, 0, 7}) {
            test_rope(1, 1, 2, first, from);
            test_rope(6, 3, 34, first, from);
            test_rope(50, 15, 64, first, from);
        }
        test_rope_store<uint16_t>(50, 15, 5, 64, 113, from);
        test_rope_store<uint16_t>(7, 3, 1, 34, 0, from);
        if (from == Storage::f32) test_rope_store<float>(7, 3, 1, 34, 5, from);
        for (Storage to : {Storage::f32, Storage::bf16_rows}) {
            for (int cols : {1, 33, 128, 720}) test_copy(cols % 7 + 1, cols, from, to);
            test_pixel_shuffle(4, 2, 5, from, to);
            test_pixel_shuffle(12, 4, 33, from, to);
            test_pixel_shuffle(3, 1, 7, from, to);
        }
    }
    for (bool pulled : {false, true})
        for (bool second : {false, true})
            for (int cols : {1, 7, 32, 200}) test_flow(cols % 5 + 1, cols, pulled, second);
    in_every_order([] {
        test_norm(7, 129, true);
        test_quantize(129, Storage::f32);
        test_rope(7, 3, 34, 2, Storage::bf16_rows);
        test_flow(7, 33, true, true);
    });
    return report("cuda_rows");
}

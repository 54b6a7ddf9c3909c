// Every kernel of every ISA against a double-precision definition, with bounds derived from the
// number of roundings, and every ISA against the scalar reference for equality of bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "isas.h"

using namespace smolvla::cpu;

namespace {

constexpr double kEps = 0x1p-24;  // half an ulp of 1
std::mt19937 generator(7);

std::vector<float> randoms(size_t count, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<float> v(count);
    for (float& x : v) x = normal(generator);
    return v;
}

// A panel as pack.cpp lays it out, and its values widened.
struct Panel {
    std::vector<uint32_t> words;  // bfloat16 pairs
    std::vector<float> values;    // [depth][32]
    explicit Panel(int depth)
        : words(size_t(depth) * 16 + 16), values(randoms(size_t(depth) * 32)) {
        for (size_t i = 0; i < values.size(); ++i) {
            uint32_t bits;
            std::memcpy(&bits, &values[i], 4);
            bits &= 0xffff0000u;
            std::memcpy(&values[i], &bits, 4);
            const size_t k = i / 32, c = i % 32;
            uint32_t& word = aligned()[k * 16 + c % 16];
            word |= c < 16 ? bits >> 16 : bits;
        }
    }
    uint32_t* aligned() {
        const auto address = reinterpret_cast<uintptr_t>(words.data());
        return reinterpret_cast<uint32_t*>((address + 63) / 64 * 64);
    }
};

void test_gemm(const std::vector<std::string>& isas) {
    for (int depth : {1, 8, 16, 31, 64, 255, 256, 257, 720, 1000})
        for (int rows = 1; rows <= kMaxTileRows; ++rows) {
            const ptrdiff_t ldx = depth + 5, ldo = 37;
            const std::vector<float> x = randoms(size_t(ldx) * rows);
            Panel panel(depth);
            std::vector<float> reference;
            for (const std::string& isa : isas) {
                const Kernels k = choose_kernels(isa);
                for (const GemmKernels* gemm : {k.gemm_f32, k.gemm_bf16}) {
                    if (rows > gemm->max_rows) continue;
                    const void* weights = gemm == k.gemm_f32
                                              ? static_cast<const void*>(panel.values.data())
                                              : panel.aligned();
                    std::vector<float> out(size_t(ldo) * rows, -7.0f);
                    gemm->tile[rows](x.data(), ldx, weights, depth, out.data(), ldo, nullptr);
                    for (int r = 0; r < rows; ++r)
                        for (int c = 0; c < 32; ++c) {
                            double sum = 0, size = 0;
                            for (int i = 0; i < depth; ++i) {
                                const double p = double(x[r * ldx + i]) * panel.values[i * 32 + c];
                                sum += p;
                                size += std::fabs(p);
                            }
                            const int roundings =
                                std::min(depth, kDepthBlock) + depth / kDepthBlock;
                            CHECK(std::fabs(out[r * ldo + c] - sum) <=
                                  roundings * kEps * size * 1.01);
                        }
                    for (int r = 0; r < rows; ++r)  // nothing outside the tile is written
                        for (int c = 32; c < ldo; ++c) CHECK(out[r * ldo + c] == -7.0f);
                    if (reference.empty()) reference = out;
                    CHECK(out == reference);  // bf16 weights are exact in float32
                }
            }
        }
}

// A row alone and the same row inside a taller tile give the same bits.
void test_rows_are_independent(const std::vector<std::string>& isas) {
    const int depth = 720;
    const std::vector<float> x = randoms(size_t(depth) * kMaxTileRows);
    Panel panel(depth);
    for (const std::string& isa : isas) {
        const GemmKernels& gemm = *choose_kernels(isa).gemm_f32;
        std::vector<float> tall(size_t(32) * gemm.max_rows), alone(32);
        gemm.tile[gemm.max_rows](x.data(), depth, panel.values.data(), depth, tall.data(), 32,
                                 nullptr);
        for (int r = 0; r < gemm.max_rows; ++r) {
            gemm.tile[1](x.data() + r * depth, depth, panel.values.data(), depth, alone.data(), 32,
                         nullptr);
            CHECK(std::equal(alone.begin(), alone.end(), tall.begin() + r * 32));
        }
    }
}

double silu(double x) { return x / (1 + std::exp(-x)); }
double gelu(double x) {
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

void test_epilogue(const std::vector<std::string>& isas) {
    const int rows = 5;
    for (int columns : {1, 8, 15, 16, 17, 31, 32})
        for (TileActivation a : {TileActivation::none, TileActivation::gelu_tanh,
                                 TileActivation::silu, TileActivation::silu_gate}) {
            const bool gate = a == TileActivation::silu_gate;
            if (gate && columns > 16) continue;
            const std::vector<float> tile = randoms(rows * 32, 4.0f), bias = randoms(32);
            const std::vector<float> residual = randoms(rows * 40);
            std::vector<float> reference;
            for (const std::string& isa : isas) {
                std::vector<float> y(rows * 40, -7.0f);
                const Epilogue e{bias.data(), residual.data(), 40, 0.5f, a, smolvla::Storage::f32};
                choose_kernels(isa).epilogue(e, tile.data(), rows, columns, y.data(), 40);
                for (int r = 0; r < rows; ++r)
                    for (int c = 0; c < 40; ++c) {
                        if (c >= columns) {
                            CHECK(y[r * 40 + c] == -7.0f);
                            continue;
                        }
                        const double v = tile[r * 32 + c] + bias[c];
                        double want = v;
                        if (a == TileActivation::gelu_tanh) want = gelu(v);
                        if (a == TileActivation::silu) want = silu(v);
                        if (gate) want = silu(v) * (tile[r * 32 + c + 16] + bias[c + 16]);
                        want = want * 0.5 + residual[r * 40 + c];
                        // exp and the division: at most 16 roundings of an activation.
                        const double up =
                            gate ? std::fabs(tile[r * 32 + c + 16] + bias[c + 16]) : 1;
                        CHECK(std::fabs(y[r * 40 + c] - want) <=
                              16 * kEps * (1 + std::fabs(v)) * (1 + up) + kEps * std::fabs(want));
                    }
                if (reference.empty()) reference = y;
                CHECK(y == reference);
            }
        }
}

void test_norms(const std::vector<std::string>& isas) {
    for (int columns : {1, 16, 36, 48, 72, 100, 720, 960}) {
        const ptrdiff_t ld = columns + 3;
        const int rows = 3;
        const std::vector<float> x = randoms(ld * rows, 3.0f), w = randoms(columns),
                                 b = randoms(columns);
        std::vector<float> reference;
        for (const std::string& isa : isas) {
            const Kernels k = choose_kernels(isa);
            std::vector<float> both;
            for (bool rms : {false, true}) {
                std::vector<float> y(ld * rows, -7.0f);
                (rms ? k.rms_norm : k.layer_norm)(x.data(), ld, rows, columns, w.data(), b.data(),
                                                  1e-5f, y.data(), ld, smolvla::Storage::f32);
                for (int r = 0; r < rows; ++r) {
                    double mean = 0, square = 0;
                    for (int c = 0; c < columns; ++c) mean += x[r * ld + c] / double(columns);
                    if (rms) mean = 0;
                    for (int c = 0; c < columns; ++c)
                        square += std::pow(x[r * ld + c] - mean, 2) / columns;
                    const double root = std::sqrt(square + 1e-5f);
                    for (int c = 0; c < columns; ++c) {
                        const double want = (x[r * ld + c] - mean) / root * w[c] + (rms ? 0 : b[c]);
                        const double size =
                            (std::fabs(x[r * ld + c]) + std::fabs(mean)) / root * std::fabs(w[c]) +
                            std::fabs(want);
                        // One column: mean == x exactly, the difference is 0.
                        CHECK(std::fabs(y[r * ld + c] - want) <= (columns / 16 + 12) * kEps * size);
                    }
                }
                both.insert(both.end(), y.begin(), y.end());
            }
            if (reference.empty()) reference = both;
            CHECK(both == reference);
        }
    }
}

void test_softmax(const std::vector<std::string>& isas) {
    for (int length : {1, 7, 16, 17, 33, 177, 1024}) {
        const int padded = (length + 31) / 32 * 32, rows = 2;
        const ptrdiff_t ld = padded + 16;
        const std::vector<float> scores = randoms(ld * rows, 20.0f);
        const int lengths[rows] = {length, (length + 1) / 2};
        std::vector<float> reference;
        for (const std::string& isa : isas) {
            std::vector<float> p = scores;
            float inverse[rows];
            choose_kernels(isa).softmax(p.data(), ld, rows, lengths, padded, 0.125f, inverse);
            for (int r = 0; r < rows; ++r) {
                const float* s = &scores[r * ld];
                const double top = *std::max_element(s, s + lengths[r]);
                double sum = 0;
                for (int c = 0; c < lengths[r]; ++c) sum += std::exp(0.125 * (s[c] - top));
                for (int c = 0; c < padded; ++c) {
                    const double want = c < lengths[r] ? std::exp(0.125 * (s[c] - top)) / sum : 0.0;
                    const double got = double(p[r * ld + c]) * inverse[r];
                    // An argument's rounding grows with its size.
                    CHECK(std::fabs(got - want) <=
                          (length / 16 + 16 + 0.25 * std::fabs(s[c] - top)) * kEps * want + 1e-30);
                }
                for (int c = padded; c < ld; ++c) CHECK(p[r * ld + c] == s[c]);
            }
            p.insert(p.end(), inverse, inverse + rows);
            if (reference.empty()) reference = p;
            CHECK(p == reference);
        }
    }
}

// A NaN or an infinity among the scores must not come out as finite weights.
void test_non_finite_scores(const std::vector<std::string>& isas) {
    for (const std::string& isa : isas)
        for (int length : {1, 7, 16, 33})
            for (int at : {0, length / 2, length - 1})
                for (float bad : {NAN, INFINITY}) {
                    std::vector<float> p(48, 0.25f);
                    p[size_t(at)] = bad;
                    float inverse;
                    choose_kernels(isa).softmax(p.data(), 48, 1, &length, 48, 0.125f, &inverse);
                    CHECK(std::isnan(inverse));
                }
}

void test_rope_and_scale(const std::vector<std::string>& isas) {
    for (int dim : {2, 8, 16, 64}) {
        const int heads = 3, half = dim / 2;
        const std::vector<float> x = randoms(heads * dim), angles = randoms(half, 3.0f);
        std::vector<float> cosine(half), sine(half), reference;
        for (int i = 0; i < half; ++i) {
            cosine[i] = std::cos(angles[i]);
            sine[i] = std::sin(angles[i]);
        }
        for (const std::string& isa : isas) {
            const Kernels k = choose_kernels(isa);
            std::vector<float> y = x;
            k.rope(y.data(), heads, dim, cosine.data(), sine.data());
            for (int h = 0; h < heads; ++h)
                for (int i = 0; i < half; ++i) {
                    const double a = x[h * dim + i], b = x[h * dim + half + i];
                    const double size = 4 * kEps * (std::fabs(a) + std::fabs(b));
                    CHECK(std::fabs(y[h * dim + i] - (a * cosine[i] - b * sine[i])) <= size);
                    CHECK(std::fabs(y[h * dim + half + i] - (b * cosine[i] + a * sine[i])) <= size);
                }
            k.scale_rows(y.data(), dim, heads, dim, x.data(), y.data(), dim, smolvla::Storage::f32);
            if (reference.empty()) reference = y;
            CHECK(y == reference);
        }
    }
}

void test_dispatch() {
    CHECK_THROWS(choose_kernels("avx1024"), backend);
    setenv("SMOLVLA_FORCE_KERNEL", "softmax=scalar", 1);
    const Kernels mixed = choose_kernels("");
    CHECK(mixed.softmax == choose_kernels("scalar").softmax);
    setenv("SMOLVLA_FORCE_KERNEL", "softmux=scalar", 1);
    CHECK_THROWS(choose_kernels(""), backend);
    setenv("SMOLVLA_FORCE_KERNEL", "softmax=none", 1);
    CHECK_THROWS(choose_kernels(""), backend);
    unsetenv("SMOLVLA_FORCE_KERNEL");
    setenv("SMOLVLA_FORCE_ISA", "nothing", 1);
    CHECK_THROWS(choose_kernels(""), backend);
    setenv("SMOLVLA_FORCE_ISA", "scalar", 1);
    CHECK(std::string(choose_kernels("").isa) == "scalar");
    unsetenv("SMOLVLA_FORCE_ISA");
}

}  // namespace

int main() {
    const std::vector<std::string> isas = runnable_isas();
    test_gemm(isas);
    test_rows_are_independent(isas);
    test_epilogue(isas);
    test_norms(isas);
    test_softmax(isas);
    test_non_finite_scores(isas);
    test_rope_and_scale(isas);
    test_dispatch();
    return report("kernels");
}

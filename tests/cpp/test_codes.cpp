// Integer kernels of every ISA against their definition, for equality: products of codes, and rows
// of activations made integers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "isas.h"
#include "ops/codes.h"

using namespace smolvla::cpu;
using smolvla::code_words;
using smolvla::kCodeBlock;
using smolvla::kMaxCodes;
using smolvla::Storage;

namespace {

std::mt19937 generator(11);

int drawn(int least, int most) {
    return std::uniform_int_distribution<int>(least, most)(generator);
}

// Rows of Storage::i8 whose codes are given.
struct Rows {
    int words;
    ptrdiff_t ld;
    std::vector<float> data;
    std::vector<int> codes;  // [rows][4 * words]

    Rows(int rows, int columns, const std::vector<int>& given)
        : words(code_words(columns)),
          ld(words_of(columns, Storage::i8) + 3),
          data(size_t(ld) * rows + 1),
          codes(size_t(rows) * words * 4) {
        for (int r = 0; r < rows; ++r) {
            int8_t* row = reinterpret_cast<int8_t*>(at(r));
            int32_t total = 0;
            for (int block = 0; block < words / 8; ++block) {
                int32_t sum = 0;
                for (int c = kCodeBlock * block; c < kCodeBlock * (block + 1); ++c) {
                    const int code = c < columns ? given[size_t(r) * columns + c] : 0;
                    row[c] = static_cast<int8_t>(code);
                    codes[size_t(r) * words * 4 + c] = code;
                    sum += code;
                }
                std::memcpy(at(r) + smolvla::sums_at(words) + block, &sum, sizeof sum);
                total += sum;
            }
            std::memcpy(at(r) + smolvla::total_at(words), &total, sizeof total);
        }
    }
    float* at(int r) { return data.data() + 1 + r * ld; }  // not aligned to a vector
};

// A panel of codes [4 * words][32] as pack_codes.cpp lays it out for these kernels.
std::vector<uint8_t> packed(const std::vector<int>& codes, int words, bool four, CodeOrder order) {
    const int run = order.run;
    std::vector<uint8_t> bytes(size_t(words) * (four ? 64 : 128));
    for (int k = 0; k < 4 * words; ++k)
        for (int c = 0; c < kPanel; ++c) {
            const int code = codes[size_t(k) * kPanel + c];
            if (four)
                bytes[size_t(k / run) * 16 * run + c % 16 * run + k % run] |=
                    static_cast<uint8_t>((code + 8) << (c < 16 ? 0 : 4));
            else
                bytes[size_t(k / run) * 32 * run + c * run + k % run] =
                    static_cast<uint8_t>(code + order.offset);
        }
    return bytes;
}

// What every ISA must give, [rows][32], from integers of 64 bits.
std::vector<float> expected(const Rows& x, int rows, const std::vector<int>& codes,
                            const CodePanel& p) {
    std::vector<float> want(size_t(rows) * kPanel);
    for (int r = 0; r < rows; ++r)
        for (int begin = 0, g = 0; begin < p.words; begin += p.group_words, ++g) {
            int64_t sum[kPanel] = {};
            for (int k = 4 * begin; k < 4 * std::min(p.words, begin + p.group_words); ++k)
                for (int c = 0; c < kPanel; ++c)
                    sum[c] += int64_t{x.codes[size_t(r) * x.words * 4 + k]} *
                              codes[size_t(k) * kPanel + c];
            for (int c = 0; c < kPanel; ++c) {
                CHECK(std::abs(sum[c]) < INT32_MAX);
                float& w = want[size_t(r) * kPanel + c];
                const float whole = static_cast<float>(sum[c]), scale = p.scales[g * kPanel + c];
                w = g == 0 ? whole * scale : std::fmaf(whole, scale, w);
            }
        }
    return want;
}

void test_products(const std::vector<std::string>& isas, int columns, int group_words, int most) {
    const int words = code_words(columns), groups = (words + group_words - 1) / group_words;
    std::vector<float> scales(size_t(groups) * kPanel);
    for (float& s : scales) s = static_cast<float>(drawn(1, 1 << 20)) * 0x1p-24f;
    for (bool four : {false, true}) {
        // Beyond the columns a panel may hold anything: the rows are zero there.
        std::vector<int> codes(size_t(words) * 4 * kPanel), given(size_t(columns) * kMaxTileRows);
        for (int& code : codes) code = four ? drawn(-8, 7) : drawn(-127, 127);
        for (int& code : given) code = drawn(-127, 127);
        if (most) {  // every product as large as can be, of one sign and of alternating ones
            for (int& code : codes) code = four ? -8 : most;
            for (size_t i = 0; i < given.size(); ++i)
                given[i] = i / size_t(columns) % 2 ? -127 : i % 2 && most > 0 ? -127 : 127;
        }
        Rows x(kMaxTileRows, columns, given);
        const std::vector<float> want =
            expected(x, kMaxTileRows, codes, {nullptr, scales.data(), words, group_words});
        for (const std::string& isa : isas) {
            const Kernels k = choose_kernels(isa);
            const DotKernels& dot = four ? *k.dot4 : *k.dot8;
            const std::vector<uint8_t> bytes = packed(codes, words, four, dot.order);
            const CodePanel panel{bytes.data(), scales.data(), words, group_words};
            for (int rows = 1; rows <= dot.max_rows; ++rows) {
                const ptrdiff_t ldo = 37;
                std::vector<float> out(size_t(ldo) * rows, -7.0f);
                dot.tile[rows](x.at(0), x.ld, panel, out.data(), ldo, bytes.data());
                for (int r = 0; r < rows; ++r)
                    for (int c = 0; c < ldo; ++c)  // nothing outside the tile is written
                        CHECK(out[size_t(r * ldo + c)] ==
                              (c < kPanel ? want[size_t(r * kPanel + c)] : -7.0f));
            }
        }
    }
}

void test_rows_to_codes(const std::vector<std::string>& isas) {
    std::normal_distribution<float> normal;
    for (int columns : {1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 720, 768, 961})
        for (Storage from : {Storage::f32, Storage::rounded, Storage::bf16}) {
            const int rows = 6, words = code_words(columns), in = words_of(columns, from);
            const ptrdiff_t ldx = in + 3, ldy = words_of(columns, Storage::i8) + 2;
            std::vector<float> values(size_t(rows) * columns), x(size_t(ldx) * rows, NAN);
            for (float& v : values) v = 3 * normal(generator);
            for (int c = 0; c < columns; ++c) {
                values[size_t(columns) + c] = 0;               // row 1: zeros
                values[size_t(2 * columns) + c] *= 0x1p-120f;  // row 2: almost
                if (c == columns / 2) values[size_t(3 * columns) + c] = NAN;
                if (c == columns - 1) values[size_t(4 * columns) + c] = -INFINITY;
                values[size_t(5 * columns) + c] = c % 2 ? 127.0f : 0.5f + c % 126;  // ties
            }
            for (int r = 0; r < rows; ++r)
                for (int c = 0; c < columns; ++c) {
                    float& v = values[size_t(r) * columns + c];
                    uint32_t bits;
                    std::memcpy(&bits, &v, 4);
                    if (from != Storage::f32) bits &= 0xffff0000u;
                    std::memcpy(&v, &bits, 4);
                    if (from != Storage::bf16) {
                        x[r * ldx + c] = v;
                        continue;
                    }
                    uint32_t word = 0;
                    if (c % 2) std::memcpy(&word, &x[r * ldx + c / 2], 4);
                    word |= c % 2 ? bits >> 16 : bits;
                    std::memcpy(&x[r * ldx + c / 2], &word, 4);
                }
            for (const std::string& isa : isas) {
                std::vector<float> y(size_t(ldy) * rows, -7.0f);
                choose_kernels(isa).quantize_rows(x.data(), ldx, rows, columns, from, y.data(),
                                                  ldy);
                for (int r = 0; r < rows; ++r) {
                    const float* v = &values[size_t(r) * columns];
                    const float* row = &y[r * ldy];
                    const float scale = row[smolvla::scale_at(words)];
                    float most = 0;
                    for (int c = 0; c < columns; ++c) most = std::max(most, std::fabs(v[c]));
                    const bool live = r != 1 && r != 2 && r != 3 && r != 4 && most > 0;
                    if (r == 3 || r == 4) CHECK(std::isnan(scale));
                    if (r == 1 || r == 2) CHECK(scale == 0);
                    if (live) CHECK(scale == most / 127.0f);
                    const int8_t* codes = reinterpret_cast<const int8_t*>(row);
                    int32_t total = 0, sum = 0, got;
                    for (int c = 0; c < 4 * words; ++c) {
                        const float want =
                            live && c < columns ? std::nearbyintf(v[c] * (127.0f / most)) : 0.0f;
                        CHECK(codes[c] == static_cast<int>(want));
                        sum += codes[c];
                        if (c % kCodeBlock != kCodeBlock - 1) continue;
                        std::memcpy(&got, row + smolvla::sums_at(words) + c / kCodeBlock, 4);
                        CHECK(got == sum);
                        total += sum;
                        sum = 0;
                    }
                    std::memcpy(&got, row + smolvla::total_at(words), 4);
                    CHECK(got == total);
                    CHECK(row[ldy - 1] == -7.0f && row[ldy - 2] == -7.0f);
                }
            }
        }
}

void test_row_scales(const std::vector<std::string>& isas) {
    std::vector<float> tile(5 * kPanel), bias(kPanel), scales(5 * 7);
    for (auto* v : {&tile, &bias, &scales})
        for (float& x : *v) x = static_cast<float>(drawn(-1000, 1000)) / 256;
    for (TileActivation a : {TileActivation::none, TileActivation::gelu_tanh, TileActivation::silu,
                             TileActivation::silu_gate})
        for (const std::string& isa : isas) {
            const Kernels k = choose_kernels(isa);
            const int columns = a == TileActivation::silu_gate ? 16 : 32;
            Epilogue e{bias.data(), nullptr, 0, 0.5f, a, Storage::f32, scales.data(), 7};
            std::vector<float> scaled(tile), y(5 * kPanel), plain(5 * kPanel);
            k.epilogue(e, tile.data(), 5, columns, y.data(), kPanel);
            for (int i = 0; i < 5 * kPanel; ++i)  // with the bias added in the same rounding
                scaled[size_t(i)] = std::fmaf(tile[size_t(i)], scales[size_t(i / kPanel * 7)],
                                              bias[size_t(i % kPanel)]);
            e.bias = nullptr;
            e.row_scale = nullptr;
            k.epilogue(e, scaled.data(), 5, columns, plain.data(), kPanel);
            CHECK(y == plain);
        }
}

}  // namespace

int main() {
    const std::vector<std::string> isas = runnable_isas();
    for (int columns : {1, 16, 32, 33, 64, 96, 320, 720, 960})
        for (int group : {8, 16, 32, code_words(columns)}) test_products(isas, columns, group, 0);
    test_products(isas, 3072, code_words(3072), 0);
    // The longest sums (pack_codes.cpp refuses longer rows), all of +-127.
    for (int most : {127, -127}) test_products(isas, kMaxCodes, code_words(kMaxCodes), most);
    test_rows_to_codes(isas);
    test_row_scales(isas);
    return report("codes");
}

// A test of the tests: with any one kernel broken, the checks of the operations must complain. Both
// when they ask for the reference's bits, which finds what is wrong with one instruction set, and
// when they ask for the derived bound, which finds what is wrong with all of them.
#include <algorithm>
#include <cstring>
#include <utility>

#include "check.h"
#include "cpu/isa.h"
#include "operations.h"

using namespace smolvla;
using namespace smolvla::cpu;

namespace {

Kernels whole;  // what the broken ones below are made of

// Leaves out the last product.
template <const GemmKernels* Kernels::* TABLE, int ROWS>
void short_tile(const float* x, ptrdiff_t ldx, const void* panel, int depth, float* out,
                ptrdiff_t ldo, const void* next) {
    (whole.*TABLE)->tile[ROWS](x, ldx, panel, depth - 1, out, ldo, next);
}
template <const GemmKernels* Kernels::* TABLE, int... ROWS>
const GemmKernels* short_tiles(std::integer_sequence<int, ROWS...>) {
    static const GemmKernels table = {(whole.*TABLE)->max_rows,
                                      {nullptr, short_tile<TABLE, ROWS + 1>...}};
    return &table;
}
template <const GemmKernels* Kernels::* TABLE>
const GemmKernels* short_tiles() {
    return short_tiles<TABLE>(std::make_integer_sequence<int, kMaxTileRows>());
}

// Leaves out the first word.
template <const DotKernels* Kernels::* TABLE, int ROWS>
void short_dot(const float* x, ptrdiff_t ldx, const CodePanel& panel, float* out, ptrdiff_t ldo,
               const void* next) {
    std::vector<float> rows(x, x + (ROWS - 1) * ldx + scale_at(panel.words));
    for (int r = 0; r < ROWS; ++r) {
        int8_t codes[4];
        int32_t block, total;
        float* row = &rows[size_t(r * ldx)];
        std::memcpy(codes, row, 4);
        std::memset(row, 0, 4);
        std::memcpy(&block, row + sums_at(panel.words), 4);
        std::memcpy(&total, row + total_at(panel.words), 4);
        for (int code : codes) block -= code, total -= code;
        std::memcpy(row + sums_at(panel.words), &block, 4);
        std::memcpy(row + total_at(panel.words), &total, 4);
    }
    (whole.*TABLE)->tile[ROWS](rows.data(), ldx, panel, out, ldo, next);
}
template <const DotKernels* Kernels::* TABLE, int... ROWS>
const DotKernels* short_dots(std::integer_sequence<int, ROWS...>) {
    static const DotKernels table = {
        (whole.*TABLE)->max_rows, (whole.*TABLE)->order, {nullptr, short_dot<TABLE, ROWS + 1>...}};
    return &table;
}
template <const DotKernels* Kernels::* TABLE>
const DotKernels* short_dots() {
    return short_dots<TABLE>(std::make_integer_sequence<int, kMaxTileRows>());
}
// Scales as if the largest code were 128 instead of 127.
void coarse_rows(const float* x, ptrdiff_t ldx, int rows, int columns, Storage from, float* y,
                 ptrdiff_t ldy) {
    whole.quantize_rows(x, ldx, rows, columns, from, y, ldy);
    for (int r = 0; r < rows; ++r) y[r * ldy + scale_at(code_words(columns))] *= 127.0f / 128;
}

// Takes the bias of the neighbouring column.
void shifted_epilogue(const Epilogue& e, const float* tile, int rows, int columns, float* y,
                      ptrdiff_t ldy) {
    Epilogue wrong = e;
    float bias[kPanel] = {};
    if (e.bias) std::copy(e.bias + 1, e.bias + kPanel, bias);
    if (e.bias) wrong.bias = bias;
    whole.epilogue(wrong, tile, rows, columns, y, ldy);
}
// Writes one column too many.
void wide_epilogue(const Epilogue& e, const float* tile, int rows, int columns, float* y,
                   ptrdiff_t ldy) {
    Epilogue same = e;
    same.residual = nullptr;
    whole.epilogue(same, tile, rows, std::min(columns + 1, kPanel), y, ldy);
    whole.epilogue(e, tile, rows, columns, y, ldy);
}
// Divides by one column too many.
template <Norm Kernels::* KERNEL>
void wider_norm(const float* x, ptrdiff_t ldx, int rows, int columns, const float* weight,
                const float* bias, float eps, float* y, ptrdiff_t ldy, Storage storage) {
    std::vector<float> padded(size_t(columns) + 1), w(weight, weight + columns), out(padded);
    std::vector<float> b(size_t(columns) + 1);
    if (bias) std::copy(bias, bias + columns, b.begin());
    w.push_back(0.0f);
    for (int r = 0; r < rows; ++r) {
        std::copy(x + r * ldx, x + r * ldx + columns, padded.begin());
        (whole.*KERNEL)(padded.data(), 0, 1, columns + 1, w.data(), b.data(), eps, out.data(), 0,
                        Storage::f32);
        whole.scale_rows(out.data(), 0, 1, columns, nullptr, y + r * ldy, 0, storage);
    }
}
// Forgets the newest key.
void forgetful_softmax(float* scores, ptrdiff_t ld, int rows, const int* lengths, int padded,
                       float scale, float* inverse_sum) {
    std::vector<int> shorter(lengths, lengths + rows);
    for (int& length : shorter) length = std::max(1, length - 1);
    whole.softmax(scores, ld, rows, shorter.data(), padded, scale, inverse_sum);
}
void forgetful_softmax_bf16(float* scores, ptrdiff_t ld, int rows, const int* lengths, int padded,
                            float scale, float* inverse_sum, Storage storage) {
    std::vector<int> shorter(lengths, lengths + rows);
    for (int& length : shorter) length = std::max(1, length - 1);
    whole.softmax_bf16(scores, ld, rows, shorter.data(), padded, scale, inverse_sum, storage);
}
// Takes the first row's factor for all.
void same_factor(const float* x, ptrdiff_t ldx, int rows, int columns, const float* factor,
                 float* y, ptrdiff_t ldy, Storage storage) {
    const std::vector<float> first(static_cast<size_t>(rows), factor ? factor[0] : 1.0f);
    whole.scale_rows(x, ldx, rows, columns, first.data(), y, ldy, storage);
}
// Rotates the other way.
void backward_rope(float* x, int heads, int head_dim, const float* cosine, const float* sine) {
    std::vector<float> opposite(sine, sine + head_dim / 2);
    for (float& s : opposite) s = -s;
    whole.rope(x, heads, head_dim, cosine, opposite.data());
}

int complaints(const Kernels& kernels, bool exact) {
    Judge judge({{"broken", kernels, exact}}, true, false);
    check_linear(judge);
    check_codes(judge);
    check_attention(judge);
    check_rows(judge);
    return judge.wrong;
}

}  // namespace

int main() {
    whole = choose_kernels("");
    struct Defect {
        const char* op;
        void (*apply)(Kernels& kernels);
    };
    const Defect defects[] = {
        {"gemm_f32", [](Kernels& k) { k.gemm_f32 = short_tiles<&Kernels::gemm_f32>(); }},
        {"gemm_bf16", [](Kernels& k) { k.gemm_bf16 = short_tiles<&Kernels::gemm_bf16>(); }},
        {"gemm_words", [](Kernels& k) { k.gemm_words = short_tiles<&Kernels::gemm_words>(); }},
        {"dot8", [](Kernels& k) { k.dot8 = short_dots<&Kernels::dot8>(); }},
        {"dot4", [](Kernels& k) { k.dot4 = short_dots<&Kernels::dot4>(); }},
        {"quantize_rows", [](Kernels& k) { k.quantize_rows = coarse_rows; }},
        {"epilogue", [](Kernels& k) { k.epilogue = shifted_epilogue; }},
        {"epilogue", [](Kernels& k) { k.epilogue = wide_epilogue; }},
        {"layer_norm", [](Kernels& k) { k.layer_norm = wider_norm<&Kernels::layer_norm>; }},
        {"rms_norm", [](Kernels& k) { k.rms_norm = wider_norm<&Kernels::rms_norm>; }},
        {"softmax", [](Kernels& k) { k.softmax = forgetful_softmax; }},
        {"softmax_bf16", [](Kernels& k) { k.softmax_bf16 = forgetful_softmax_bf16; }},
        {"scale_rows", [](Kernels& k) { k.scale_rows = same_factor; }},
        {"rope", [](Kernels& k) { k.rope = backward_rope; }},
    };
    CHECK(complaints(whole, true) == 0);
    for (const Defect& defect : defects) {
        if (std::string(defect.op) == "gemm_words" && !whole.gemm_words) continue;
        Kernels broken = whole;
        defect.apply(broken);
        for (bool exact : {true, false})
            if (complaints(broken, exact) == 0) {
                ++failures;
                std::printf("failed: nobody noticed a broken %s when %s\n", defect.op,
                            exact ? "bits must be equal" : "results have a bound");
            }
    }
    // An operation added to the table needs a defect above.
    for (const KernelRow& row : kernel_table(whole)) {
        const bool ceiling = row.op.size() > 6 && row.op.substr(row.op.size() - 6) == "_chain";
        const bool covered = std::any_of(std::begin(defects), std::end(defects),
                                         [&](const Defect& d) { return row.op == d.op; });
        CHECK(ceiling || covered);
    }
    return report("broken_kernels");
}

// The kernels that one ISA provides, as raw pointers to functions. They hold no state, take no
// lock, allocate nothing and never fail: cpu/backend.cpp has checked everything before.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/storage.h"

namespace smolvla::cpu {

constexpr int kPanel = 32;        // weight columns in a panel; also keys or head dims in a KV panel
constexpr int kDepthBlock = 256;  // products summed in one chain before the chains are added
constexpr int kMaxTileRows = 14;

enum class TileActivation { none, gelu_tanh, silu, silu_gate };

// out[r][0..32) = sum over k < depth of x[r][k] * panel[k][0..32), for ROWS rows (the index into
// GemmKernels::tile). `next` is the address to fetch ahead, one panel row per k, or null. Of
// gemm_words, x and panel are words of two bfloat16 and depth counts words.
using GemmTile = void (*)(const float* x, ptrdiff_t ldx, const void* panel, int depth, float* out,
                          ptrdiff_t ldo, const void* next);

struct GemmKernels {
    int max_rows;  // largest tile; every height in [1, max_rows] exists
    GemmTile tile[kMaxTileRows + 1];
};

// A panel of weights of integer codes, and what a code of each column and group stands for.
struct CodePanel {
    const void* codes;    // every k of kPanel columns, in the kernels' CodeOrder
    const float* scales;  // [groups][kPanel]
    int words;            // code_words of the depth
    int group_words;      // of a group of k under one scale; a whole number of blocks
};
// out[r][c] = sum over groups of scales[group][c] * (integer sum over k in the group of x[r][k] *
// code[k][c]), for ROWS rows of Storage::i8. The integers are exact, the groups are added in order
// with one rounding each; the scales of the rows are the epilogue's.
using DotTile = void (*)(const float* x, ptrdiff_t ldx, const CodePanel& panel, float* out,
                         ptrdiff_t ldo, const void* next);

// How an ISA wants the codes of a panel, see cpu/pack_codes.h.
struct CodeOrder {
    int offset;  // what packing adds to an int8 code, for an ISA that multiplies unsigned bytes
    int run;     // how many k of a column lie side by side: 4, or 8
};

struct DotKernels {
    int max_rows;
    CodeOrder order;
    DotTile tile[kMaxTileRows + 1];
};

// Rows of any storage to Storage::i8: codes x * (127 / max |x|) to the nearest (ties to even),
// scale max |x| / 127; codes and scale 0 where max |x| is below 2^-100. A row with a NaN or an
// infinity has codes 0 and the scale NaN.
using QuantizeRows = void (*)(const float* x, ptrdiff_t ldx, int rows, int columns, Storage from,
                              float* y, ptrdiff_t ldy);

// Every y below is written as its Storage says; row pitches count words. An activation whose result
// is rounded to bfloat16 needs an exponential of 2^-17, not of one ulp.

// y[r][c] =
//     activation(tile[r][c] * row_scale[r] + bias[c]) * scale * column_scale[c] + residual[r][c]
// silu_gate: a tile holds 16 gate then 16 up columns and gives 16: silu(gate + b) * (up + b).
struct Epilogue {
    const float* bias;      // kPanel values, or null
    const float* residual;  // first row, or null
    ptrdiff_t residual_ld;
    float scale;
    TileActivation activation;
    Storage storage;                   // of y
    const float* row_scale = nullptr;  // of the first row, or null for 1
    ptrdiff_t row_scale_ld = 0;
    const float* column_scale = nullptr;  // kPanel values, or null for 1
};
using EpilogueTile = void (*)(const Epilogue& e, const float* tile, int rows, int columns, float* y,
                              ptrdiff_t ldy);

// y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias;   rms: y = x / sqrt(mean(x^2) + eps) *
// weight
using Norm = void (*)(const float* x, ptrdiff_t ldx, int rows, int columns, const float* weight,
                      const float* bias, float eps, float* y, ptrdiff_t ldy, Storage storage);

// In place: row r becomes exp(scale * (s - max s)) over its first lengths[r] scores and 0 up to
// `padded` (a multiple of 16); inverse_sum[r] = 1 / sum.
using Softmax = void (*)(float* scores, ptrdiff_t ld, int rows, const int* lengths, int padded,
                         float scale, float* inverse_sum);

// The same for Storage::rounded and Storage::bf16, written over the scores; padded is a multiple of
// 32. The sums are those of the weights before they are rounded.
using SoftmaxBf16 = void (*)(float* scores, ptrdiff_t ld, int rows, const int* lengths, int padded,
                             float scale, float* inverse_sum, Storage storage);

// y[r][c] = x[r][c] * factor[r]; without factors, x[r][c]
using ScaleRows = void (*)(const float* x, ptrdiff_t ldx, int rows, int columns,
                           const float* factor, float* y, ptrdiff_t ldy, Storage storage);

// Rotates the halves of each head in place by the angles of cosine/sine rows of head_dim/2 values.
using Rope = void (*)(float* x, int heads, int head_dim, const float* cosine, const float* sine);

// A kernel that an ISA leaves out (null) comes from the next supported ISA of the table.
struct Kernels {
    const char* isa = nullptr;
    const GemmKernels* gemm_f32 = nullptr;
    const GemmKernels* gemm_bf16 = nullptr;
    const GemmKernels* gemm_words = nullptr;  // null on every row: no bfloat16 products
    const DotKernels* dot8 = nullptr;         // int8 codes
    const DotKernels* dot4 = nullptr;         // int4 codes
    QuantizeRows quantize_rows = nullptr;
    EpilogueTile epilogue = nullptr;
    Norm layer_norm = nullptr;
    Norm rms_norm = nullptr;
    Softmax softmax = nullptr;
    SoftmaxBf16 softmax_bf16 = nullptr;
    ScaleRows scale_rows = nullptr;
    Rope rope = nullptr;
    // Products in registers alone; return the flops done. The ceilings that reports divide by.
    double (*fma_chain)(long iterations) = nullptr;
    double (*words_chain)(long iterations) = nullptr;
};

}  // namespace smolvla::cpu

// Integer weights as gemm_i8 and gemm_w4 read them, made on the host from what ops/codes.h stores.
// The backend and the operators of smolvla_edge.ops both come here.
#pragma once

#include <string>
#include <vector>

#include "runtime/error.h"

namespace smolvla::cuda {

// Which part's row comes to row r of the weight as it lies; part -1: none, zeros. Parts of `out`
// rows each follow each other; gated ones (two) take turns, in blocks of 8 rows.
struct RowOf {
    int part, row;
};
RowOf row_of(int r, const std::vector<int>& out, bool gated);
int rounded_up(int n, int unit);

// Rows of codes and their scales as they are stored. A bad one is an error of `kind` that names it.
struct CodeRows {
    std::string name;
    const uint8_t* codes;  // int8 [rows, in], or two codes of 4 bits a byte [rows, (in + 1) / 2]
    const void* scales;    // float [rows], or float16 [rows, groups]
};

// int8 [columns, ld], zero behind `in`; a float for every row.
struct PackedI8 {
    int columns, ld;
    std::vector<int8_t> rows;
    std::vector<float> scales;
};
PackedI8 pack_i8(const std::vector<CodeRows>& parts, const std::vector<int>& out, int in,
                 bool gated, ErrorKind kind);

// Fragments and their scales (cuda/fragments.h); `columns` a multiple of 16.
struct PackedI4 {
    int columns;
    std::vector<uint32_t> words, scales;
};
PackedI4 pack_i4(const std::vector<CodeRows>& parts, const std::vector<int>& out, int in, int group,
                 bool gated, ErrorKind kind);

}  // namespace smolvla::cuda

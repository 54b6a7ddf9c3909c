// How 4-bit weights lie in device memory: as the tensor core wants them, in the order in which a
// warp reads them. Host and device; tests/cuda compares with a search through all elements.
//
// Sums over k may be taken in any order, if x and W agree on it. So lane l (g = l / 4, t = l % 4)
// takes from every 32 of k the 8 that begin at 8 t, four a step: it reads its part of a row of x
// with two 16-byte loads for a block of 64, and the four lanes of a row read 64 bytes in a run each
// time. No shared memory, no ldmatrix.
//
//     step s of a block of 64 multiplies, in lane l's registers of m16n8k16,
//         A[g][2t, 2t+1] A[g+8][2t, 2t+1] A[g][2t+8, 2t+9] A[g+8][2t+8, 2t+9]
//       = W[g][k, k+1]   W[g+8][k, k+1]   W[g][k+2, k+3]   W[g+8][k+2, k+3]
//     with k = 32 (s / 2) + 8 t + 4 (s % 2): a step lies in one group, however small
//
// These eight codes, each plus 8, are one word: register i has its first code in nibble i and its
// second in nibble i + 4 (ptx_numbers.h, expand_s4_bf16). The words of the four steps of a block
// follow each other, then come the next lane's:
//
//     word(tile of 16 rows, block, lane, step) = ((tile * blocks + block) * 32 + lane) * 4 + step
//
// Scales: a word for rows g and g + 8 of a group, both float16, g in the low half:
//
//     scale(tile, group, g) = (tile * groups + group) * 8 + g
#pragma once

#include <cstddef>
#include <cstdint>

namespace smolvla::cuda {

constexpr int kFragmentRows = 16, kFragmentDepth = 64;

inline int fragment_blocks(int depth) { return (depth + kFragmentDepth - 1) / kFragmentDepth; }

struct CodePlace {
    size_t word;
    int nibble;
};
// Where the code of row r, column k of a matrix of so many blocks lies.
inline CodePlace code_place(int r, int k, int blocks) {
    const int tile = r / kFragmentRows, g = r % 8, upper = r / 8 % 2;
    const int block = k / kFragmentDepth, half = k % kFragmentDepth / 32, t = k % 32 / 8;
    const int step = half * 2 + k % 8 / 4, pair = k % 4 / 2, second = k % 2;
    const size_t lane = size_t(4 * g + t);
    return {((size_t(tile) * blocks + block) * 32 + lane) * 4 + step,
            pair * 2 + upper + second * 4};
}

struct ScalePlace {
    size_t word;
    int half;  // 1: the high one
};
inline ScalePlace scale_place(int r, int group, int groups) {
    return {(size_t(r / kFragmentRows) * groups + group) * 8 + r % 8, r / 8 % 2};
}

// A word without codes: every one is zero.
constexpr uint32_t kZeroCodes = 0x88888888u;

}  // namespace smolvla::cuda

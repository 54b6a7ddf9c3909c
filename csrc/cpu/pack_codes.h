// Weights of integer codes: what a source holds, and how it becomes panels.
//
// int8: tensor NAME of I8 [out, in], codes in [-127, 127], and NAME.scale of F32 [out].
// int4: tensor NAME of U8 [out, (in + 1) / 2], two codes in [-8, 7] plus 8 a byte, the first in the
// low half, and NAME.scale of F16 [out, groups]; a group is 32, 64 or 128 of k, the last may be
// shorter.
//
// In a panel, a run of k (CodeOrder::run) of one column lies together, the 32 columns of a run side
// by side, the runs one after another. int8: a byte a code, plus CodeOrder::offset. int4: columns c
// (low half) and c + 16 (high half) share a byte, each plus 8.
//
//     run 4, int8:  k 0..3 of column 0 | k 0..3 of column 1 | ... column 31 | k 4..7 of column 0
//     ...
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cpu/pack.h"

namespace smolvla::cpu {

struct Codes {
    Layout layout;
    int group_words;
};

// Nothing when the weights are floats. Raises a checkpoint error for codes that do not fit `in` and
// `out`, lack their scales, or are stacked with others.
std::optional<Codes> codes_of(const TensorSource& source, const std::vector<std::string>& weights,
                              int in, const std::vector<int>& out);

// Raises a checkpoint error for a code or a scale that quantising never writes.
void fill_codes(const Linear& w, float* scales, const TensorSource& source,
                const std::vector<std::string>& weights, const std::vector<int>& out,
                CodeOrder order, ThreadPool& pool);

}  // namespace smolvla::cpu

// Weights of integer codes: what a source holds, and how it becomes panels.
//
// int8: tensor NAME of I8 [out, in], codes in [-127, 127], and NAME.scale of F32 [out].
// int4: tensor NAME of U8 [out, (in + 1) / 2], two codes in [-8, 7] plus 8 a byte, the first in the
// low half, and NAME.scale of F16 [out, groups]; a group is 32, 64 or 128 of k, the last may be
// shorter.
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
                int code_offset, ThreadPool& pool);

}  // namespace smolvla::cpu

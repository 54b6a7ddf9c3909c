// Weights of integer codes: what a source holds, whatever a backend makes of it.
//
// int8: tensor NAME of I8 [out, in], codes in [-127, 127], and NAME.scale of F32 [out].
// int4: tensor NAME of U8 [out, (in + 1) / 2], two codes in [-8, 7] plus 8 a byte, the first in the
// low half, and NAME.scale of F16 [out, groups]; a group is 32, 64 or 128 of k, the last may be
// shorter.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/tensor_source.h"

namespace smolvla {

constexpr int kMaxCodes = 65536;  // in a row: an int32 sum of their products cannot overflow

struct CodeFormat {
    int bits;
    int group;  // of four bits: codes under one scale
};

// Nothing when the weights are floats. Raises a checkpoint error for codes that do not fit `in` and
// `out`, lack their scales, or are stacked with others.
std::optional<CodeFormat> codes_of(const TensorSource& source,
                                   const std::vector<std::string>& weights, int in,
                                   const std::vector<int>& out);

}  // namespace smolvla

// Weights of integer codes (ops/codes.h) as panels.
//
// In a panel, a run of k (CodeOrder::run) of one column lies together, the 32 columns of a run side
// by side, the runs one after another. int8: a byte a code, plus CodeOrder::offset. int4: columns c
// (low half) and c + 16 (high half) share a byte, each plus 8.
//
//     run 4, int8:  k 0..3 of column 0 | k 0..3 of column 1 | ... column 31 | k 4..7 of column 0
//     ...
#pragma once

#include <string>
#include <vector>

#include "cpu/pack.h"
#include "ops/codes.h"

namespace smolvla::cpu {

// Raises a checkpoint error for a code or a scale that quantising never writes.
void fill_codes(const PackedLinear& w, float* scales, const TensorSource& source,
                const std::vector<std::string>& weights, const std::vector<int>& out,
                CodeOrder order, ThreadPool& pool);

// Codes of one weight as ONNX has them, two's complement in row-major order: INT4 [in, out], two a
// byte with the first in the low half, under float32 scales [groups of in, out]; or, of group 0,
// INT8 [in, out] under float32 scales [out].
struct OnnxCodes {
    const uint8_t* codes;
    const float* scales;
    int in, out, group;
};
// Bytes of their panels with scales, and the weight in `room`: so many zeroed bytes, 64-byte
// aligned. Raises a checkpoint error as fill_codes does.
size_t packed_bytes(const OnnxCodes& from);
PackedLinear pack_onnx_codes(const OnnxCodes& from, CodeOrder order, char* room);

}  // namespace smolvla::cpu

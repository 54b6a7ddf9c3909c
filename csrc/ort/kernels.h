// The operators of the domain `smolvla_edge`, version 1, over the CPU kernels of the engine. What
// each computes, as standard ONNX, is in export/functions.py.
//
// A kernel belongs to one node of a session. Several threads may run a session: after it was made,
// a kernel only reads what it owns, and works in a Scratch of the call.
#pragma once

#include <string>

#include "cpu/linear.h"
#include "ort/scratch.h"
#include "ort/tensors.h"

namespace smolvla::ort {

// The kernels of this CPU, chosen once.
const cpu::Kernels& cpu_kernels();
int most_threads();

constexpr int kMostRows = 1 << 24;

// x float32 [..., in] times a weight of codes, of which a group 0 means the second -> float32
// [..., out].
//   LinearW4  codes int4 [in, out], scales float32 [groups, out]
//   LinearW8  codes int8 [in, out] in [-127, 127], scales float32 [out]
class LinearCodes {
public:
    LinearCodes(const Api& api, const KernelInfo* info, const char* name, int group);
    void compute(KernelContext* context) const;

private:
    struct Weight {
        Block block;
        PackedLinear packed;
    };
    Weight pack(const Tensor& codes, const Tensor& scales) const;
    std::string said(const char* input) const;  // for a message: "LinearW4: codes"

    const Api& api_;
    const char* const name_;
    const int group_;
    Weight weight_;  // without a block where codes or scales are not constant
};

class LinearW4 : public LinearCodes {
public:
    LinearW4(const Api& api, const KernelInfo* info);
};

class LinearW8 : public LinearCodes {
public:
    LinearW8(const Api& api, const KernelInfo* info);
};

// query float32 [1, rows, heads * d], key and value float32 [1, columns, kv_heads * d], mask bool
// [rows, columns] -> float32 [1, rows, heads * d].
class ExpertAttention {
public:
    ExpertAttention(const Api& api, const KernelInfo* info);
    void compute(KernelContext* context) const;

private:
    const Api& api_;
    const int heads_, kv_heads_;
};

// x, v, last float32 [rows, dims], row float32 [5], pull_target float32 [rows or 1, dims],
// pull_weights float32 [rows or 1] -> x of the next step, v after the pull: float32 [rows, dims].
class DenoiseStep {
public:
    DenoiseStep(const Api& api, const KernelInfo*) : api_(api) {}
    void compute(KernelContext* context) const;

private:
    const Api& api_;
};

}  // namespace smolvla::ort

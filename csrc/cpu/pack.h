// Weight and key/value layouts of the CPU kernels.
//
// Weight W [out, in]: panels of 32 outputs, each [in][32], so that a step of k reads one or two
// cache lines in order. bfloat16 panels store word j = (column j, column j + 16): two cheap integer
// operations widen a whole row. Gated weights interleave 16 gate and 16 up columns in a panel, so
// that silu(gate) * up is done on a tile that is still in L1.
//
//     panel 0                      panel 1
//     k=0: w[0][0]  ... w[31][0]   w[32][0] ... w[63][0]
//     k=1: w[0][1]  ... w[31][1]   ...
//
// Keys: per kv head, panels of 32 positions [head_dim][32] (a weight whose "outputs" are
// positions). Values: per kv head, panels of 32 head dims [capacity][32] (a weight whose depth is
// the position).
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "ops/ops.h"
#include "runtime/arena.h"

namespace smolvla {

struct Linear {
    int in = 0;
    int out = 0;  // columns of the result (half of the packed ones when gated)
    int panels = 0;
    bool bf16 = false;
    bool gated = false;
    char* data = nullptr;
    const float* bias = nullptr;  // padded to panels * 32, or null

    size_t panel_bytes() const { return size_t(in) * cpu::kPanel * (bf16 ? 2 : 4); }
    const char* panel(int p) const { return data + size_t(p) * panel_bytes(); }
};

struct KvStore {
    int kv_heads = 0, head_dim = 0, capacity = 0;  // capacity: a multiple of 32 positions
    float* keys = nullptr;
    float* values = nullptr;

    size_t head_floats() const { return size_t(capacity) * head_dim; }
    int value_panels() const { return (head_dim + cpu::kPanel - 1) / cpu::kPanel; }
    float* key_panel(int head, int position) const {
        return keys + head * head_floats() +
               size_t(position / cpu::kPanel) * cpu::kPanel * head_dim;
    }
    float* value_panel(int head, int panel) const {
        return values + (size_t(head) * value_panels() + panel) * capacity * cpu::kPanel;
    }
};

namespace cpu {

Linear pack_linear(Arena& arena, const TensorSource& source,
                   const std::vector<std::string>& weights, const std::vector<std::string>& biases,
                   int in, const std::vector<int>& out, bool gated);
Linear pack_matrix(Arena& arena, const float* weight, int out, int in);

}  // namespace cpu
}  // namespace smolvla

// Weight and key/value layouts of the CPU kernels.
//
// Weight W [out, in]: panels of 32 outputs, each [in][32], so that a step of k reads one or two
// cache lines in order. bfloat16 weights come in two layouts: for float32 arithmetic word j of row
// k is (column j, column j + 16), which two cheap integer operations widen; for products of
// bfloat16 word j of row k is (w[j][2k] high, w[j][2k + 1] low), see ops/storage.h. Gated weights
// interleave 16 gate and 16 up columns in a panel, so that silu(gate) * up is done on a tile still
// in L1.
//
//     panel 0                      panel 1
//     k=0: w[0][0]  ... w[31][0]   w[32][0] ... w[63][0]
//     k=1: w[0][1]  ... w[31][1]   ...
//
// Codes (integers that a scale makes weights): panels of 32 outputs too, as cpu/pack_codes.h says;
// behind the panels' codes the scales, [groups of k][32] a panel.
//
// Keys: per kv head, panels of 32 positions [head_dim][32] (a weight whose "outputs" are
// positions). Values: per kv head, panels of 32 head dims [capacity][32] (a weight whose depth is
// the position). With Storage::bf16 both hold pairs along their depth, as weights do.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "ops/ops.h"
#include "runtime/weight_store.h"

namespace smolvla {

enum class Layout { f32, bf16_columns, bf16_words, codes8, codes4 };

struct PackedLinear : Linear {
    std::string name;  // tensor names joined by '+'
    int in = 0;
    int out = 0;  // columns of the result (half of the packed ones when gated)
    int panels = 0;
    Layout layout = Layout::f32;
    bool gated = false;
    char* data = nullptr;
    const float* bias = nullptr;    // padded to panels * 32, or null
    const float* scales = nullptr;  // of codes
    int group_words = 0;            // of codes: words of k under one scale

    bool codes() const { return layout == Layout::codes8 || layout == Layout::codes4; }
    // Rows of a panel: k, or pairs of k, or words of four codes.
    int depth() const {
        if (codes()) return code_words(in);
        return layout == Layout::bf16_words ? (in + 1) / 2 : in;
    }
    size_t panel_bytes() const {
        const bool narrow = layout == Layout::bf16_columns || layout == Layout::codes4;
        return size_t(depth()) * cpu::kPanel * (narrow ? 2 : 4);
    }
    const char* panel(int p) const { return data + size_t(p) * panel_bytes(); }
    int groups() const { return (depth() + group_words - 1) / group_words; }
    cpu::CodePanel code_panel(int p) const {
        return {panel(p), scales + size_t(p) * groups() * cpu::kPanel, depth(), group_words};
    }
};

struct PackedKv : KvStore {
    int kv_heads = 0, head_dim = 0, capacity = 0;  // capacity: a multiple of 32 positions
    Storage storage = Storage::f32;
    float* keys = nullptr;  // words
    float* values = nullptr;

    int key_depth() const { return words_of(head_dim, storage); }
    int value_depth(int positions) const { return words_of(positions, storage); }
    size_t key_words() const { return size_t(kv_heads) * capacity * key_depth(); }
    size_t value_words() const {
        return size_t(kv_heads) * value_panels() * value_depth(capacity) * cpu::kPanel;
    }
    int value_panels() const { return (head_dim + cpu::kPanel - 1) / cpu::kPanel; }
    float* key_panel(int head, int position) const {
        return keys +
               (size_t(head) * capacity + position / cpu::kPanel * cpu::kPanel) * key_depth();
    }
    float* value_panel(int head, int panel) const {
        return values +
               (size_t(head) * value_panels() + panel) * value_depth(capacity) * cpu::kPanel;
    }
};

namespace cpu {

// How this backend wants what a checkpoint leaves open.
struct PackOptions {
    Layout bf16_layout;
    CodeOrder order8, order4;  // of the kernels that take int8 and int4 codes
};

// Into the next blocks of `store`; only the blocks when they are filled already.
PackedLinear pack_linear(WeightStore& store, const TensorSource& source,
                         const std::vector<std::string>& weights,
                         const std::vector<std::string>& biases, int in,
                         const std::vector<int>& out, bool gated, const PackOptions& options,
                         ThreadPool& pool);
PackedLinear pack_matrix(WeightStore& store, const std::string& name, const float* weight, int out,
                         int in);

// Rows of keys or values [n, kv_heads * head_dim] of one head at positions first..., which lie in
// one panel of 32 positions: float32, or stored as the panels are. Pairs of positions that the rows
// fill by half keep their first half, and a half beyond the last row becomes zero: it is multiplied
// with weights of zero, or is kept for rows that are not the last ones.
enum class Neighbour { cleared, kept };
void pack_keys(PackedKv& kv, int head, Mat rows, int first);
void pack_values(PackedKv& kv, int head, Mat rows, int first, Neighbour next = Neighbour::cleared);
// How many of `count` positions, from the first on, follow each other within its panel.
int run_in_panel(const int* positions, int count);

}  // namespace cpu
}  // namespace smolvla

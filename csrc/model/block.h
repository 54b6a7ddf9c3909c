// What the language model and the action expert share: a Llama block's weights, and RoPE tables.
#pragma once

#include "model/config.h"
#include "ops/ops.h"

namespace smolvla {

struct Block {
    const float *norm1, *norm2;
    const Linear* qkv;  // [q; k; v], or [q] where keys come from elsewhere
    const Linear* out;
    const Linear* gate_up;
    const Linear* down;
};

// Angles position / 10000^(2i / head_dim), computed in float32 as LeRobot's apply_rope does.
// LeRobot's own base; the VLM's rope_theta (100000) is never used.
struct RopeTable {
    Mat cosine, sine;  // [positions, head_dim / 2]
};
RopeTable make_rope_table(const ModelConfig& config, Backend& ops, int positions);

}  // namespace smolvla

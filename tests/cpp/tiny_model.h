// A small random policy on disk, for tests of the whole engine.
#pragma once

#include <unistd.h>

#include <cmath>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "model/engine.h"

namespace smolvla {

inline ModelConfig tiny() {
    ModelConfig c{};
    c.vision_width = 64, c.vision_mlp = 100, c.vision_heads = 4, c.vision_layers = 2;
    c.patch_size = 16, c.image_size = 64, c.vision_eps = 1e-6f, c.scale_factor = 2;
    c.text_width = 96, c.text_mlp = 120, c.heads = 6, c.kv_heads = 2, c.head_dim = 16;
    c.text_layers = 4, c.vocab = 64, c.rms_eps = 1e-5f;
    c.expert_width = 72, c.expert_mlp = 88, c.expert_layers = 4;
    c.cross_attention = true, c.self_attn_every_n = 2, c.rope_theta = 10000.0f;
    c.resize_width = c.resize_height = 64, c.max_cameras = 2, c.tokenizer_max_length = 12;
    c.chunk_size = 8, c.num_steps = 3, c.min_period = 0.004, c.max_period = 4.0;
    c.max_state_dim = 10, c.max_action_dim = 8, c.state_dim = 6, c.action_dim = 5;
    return c;
}

// Random weights in one file, every second matrix in bfloat16.
class Weights {
public:
    explicit Weights(const ModelConfig& c)
        : path_("/tmp/smolvla_weights_" + std::to_string(getpid()) + "_" + std::to_string(made++)),
          file_(path_, std::ios::binary) {
        const int64_t vw = c.vision_width, tw = c.text_width, ew = c.expert_width;
        const int64_t q = c.q_width(), kv = c.kv_width();
        add("vision.patch", {vw, 3, c.patch_size, c.patch_size}, true);
        const int side = c.image_size / c.patch_size;
        add("vision.position", {side * side, vw}, false);
        for (int i = 0; i < c.vision_layers; ++i) {
            const std::string at = "vision.layers." + std::to_string(i) + ".";
            for (const char* name : {"norm1", "norm2"}) add(at + name, {vw}, true);
            for (const char* name : {"q", "k", "v", "o"}) add(at + "attn." + name, {vw, vw}, true);
            add(at + "mlp.up", {c.vision_mlp, vw}, true);
            add(at + "mlp.down", {vw, c.vision_mlp}, true);
        }
        add("vision.norm", {vw}, true);
        add("connector", {tw, vw * c.scale_factor * c.scale_factor}, false);
        add("text.embed", {c.vocab, tw}, false);
        for (int i = 0; i < c.text_layers; ++i) block("text", i, tw, c.text_mlp, q, kv, tw);
        for (int i = 0; i < c.expert_layers; ++i)
            block("expert", i, ew, c.expert_mlp, q, kv, c.is_self_layer(i) ? ew : kv);
        add("expert.norm", {ew}, false);
        add("state_in", {tw, c.max_state_dim}, true);
        add("action_in", {ew, c.max_action_dim}, true);
        add("time_in", {ew, 2 * ew}, true);
        add("time_out", {ew, ew}, true);
        add("action_out", {c.max_action_dim, ew}, true);
        file_.close();
    }
    ~Weights() { unlink(path_.c_str()); }

    std::vector<TensorEntry> entries;

private:
    void block(const std::string& part, int i, int64_t width, int64_t mlp, int64_t q, int64_t kv,
               int64_t kv_in) {
        const std::string at = part + ".layers." + std::to_string(i) + ".";
        for (const char* name : {"norm1", "norm2"}) add(at + name, {width}, false);
        add(at + "attn.q", {q, width}, false);
        for (const char* name : {"k", "v"}) add(at + "attn." + name, {kv, kv_in}, false);
        add(at + "attn.o", {width, q}, false);
        for (const char* name : {"gate", "up"}) add(at + "mlp." + name, {mlp, width}, false);
        add(at + "mlp.down", {width, mlp}, false);
    }
    void add(const std::string& name, std::vector<int64_t> shape, bool with_bias) {
        put(name + ".weight", shape);
        if (with_bias) put(name + ".bias", {shape[0]});
    }
    void put(const std::string& name, const std::vector<int64_t>& shape) {
        int64_t count = 1;
        for (int64_t d : shape) count *= d;
        const bool bf16 = entries.size() % 2 == 1;
        std::normal_distribution<float> normal(shape.size() == 1 ? 0.5f : 0.0f,
                                               1.0f / std::sqrt(float(count / shape[0] + 1)));
        const uint64_t at = static_cast<uint64_t>(file_.tellp());
        for (int64_t i = 0; i < count; ++i) {
            const float x = normal(generator_);
            // The upper half of a float32 is its bfloat16 (little endian).
            file_.write(reinterpret_cast<const char*>(&x) + (bf16 ? 2 : 0), bf16 ? 2 : 4);
        }
        entries.push_back({name, bf16 ? DType::bf16 : DType::f32, shape, path_, at,
                           static_cast<uint64_t>(file_.tellp()) - at});
    }

    static inline int made = 0;
    std::string path_;
    std::ofstream file_;
    std::mt19937 generator_{3};
};

}  // namespace smolvla

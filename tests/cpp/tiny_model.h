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

inline const std::vector<int> kNoneKept;

inline FlowInput flow_of(const std::vector<float>& noise, int rows, int steps) {
    FlowInput flow{noise.data(), {}, {}, {}};
    flow.plan.rows = rows;
    flow.plan.steps = steps;
    return flow;
}

// Random weights in one file, every second matrix in bfloat16, or with `bundle` those that a
// bfloat16 bundle has so. With codes: the matrices of vision and language in int8, the embedding
// table too, those of the expert in int4.
class Weights {
public:
    explicit Weights(const ModelConfig& c, bool codes = false, bool bundle = false)
        : codes_(codes),
          bundle_(bundle),
          cross_in_(c.kv_width()),
          path_("/tmp/smolvla_weights_" + std::to_string(getpid()) + "_" + std::to_string(made++)),
          file_(path_, std::ios::binary) {
        const int64_t vw = c.vision_width, tw = c.text_width, ew = c.expert_width;
        const int64_t q = c.q_width(), kv = c.kv_width();
        add("vision.patch", {vw, 3, c.patch_size, c.patch_size}, true);
        const int side = c.image_size / c.patch_size;
        add("vision.position", {side * side, vw}, false);
        for (int i = 0; i < c.vision_layers; ++i) {
            const std::string at = "vision.layers." + std::to_string(i) + ".";
            for (const char* name : {"norm1", "norm2"}) add(at + name, {vw}, true);
            for (const char* name : {"q", "k", "v", "o"})
                matrix(at + "attn." + name, vw, vw, true, 8);
            matrix(at + "mlp.up", c.vision_mlp, vw, true, 8);
            matrix(at + "mlp.down", vw, c.vision_mlp, true, 8);
            if (codes && i % 2 == 0)
                put_scales(at + "mlp.down.weight.input_scale", {c.vision_mlp}, 0);
        }
        add("vision.norm", {vw}, true);
        add("connector", {tw, vw * c.scale_factor * c.scale_factor}, false);
        matrix("text.embed", c.vocab, tw, false, 8);
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
        const int bits = part == "expert" ? 4 : 8;
        matrix(at + "attn.q", q, width, false, bits);
        for (const char* name : {"k", "v"})  // those of cross-attention are no codes
            matrix(at + "attn." + name, kv, kv_in, false, kv_in == width ? bits : 0);
        matrix(at + "attn.o", width, q, false, bits);
        for (const char* name : {"gate", "up"}) matrix(at + "mlp." + name, mlp, width, false, bits);
        matrix(at + "mlp.down", width, mlp, false, bits);
    }
    void matrix(const std::string& name, int64_t out, int64_t in, bool with_bias, int bits) {
        if (!codes_ || bits == 0) return add(name, {out, in}, with_bias);
        const std::string weight = name + ".weight";
        const bool four = bits == 4;
        const int64_t pitch = four ? (in + 1) / 2 : in;
        std::uniform_int_distribution<int> byte(four ? 0 : -127, four ? 255 : 127);
        const uint64_t at = static_cast<uint64_t>(file_.tellp());
        for (int64_t i = 0; i < out * pitch; ++i) {
            const char code = static_cast<char>(byte(generator_));
            file_.write(&code, 1);
        }
        entries.push_back({weight,
                           four ? DType::u8 : DType::i8,
                           {out, pitch},
                           path_,
                           at,
                           static_cast<uint64_t>(out * pitch)});
        const int shrink = static_cast<int>(std::lround(std::log2(double(in)) / 2));
        if (four)
            put_halves(weight + ".scale", {out, (in + 31) / 32}, shrink + 2);
        else
            put_scales(weight + ".scale", {out}, shrink + 6);
        if (with_bias) put(name + ".bias", {out});
    }
    // Float32 between 2^-shrink and twice that.
    void put_scales(const std::string& name, const std::vector<int64_t>& shape, int shrink) {
        std::uniform_real_distribution<float> between(1.0f, 2.0f);
        const uint64_t at = static_cast<uint64_t>(file_.tellp());
        for (int64_t i = 0; i < shape[0]; ++i) {
            const float x = std::ldexp(between(generator_), -shrink);
            file_.write(reinterpret_cast<const char*>(&x), 4);
        }
        entries.push_back({name, DType::f32, shape, path_, at, uint64_t(shape[0]) * 4});
    }
    // Float16 between 2^-shrink and twice that.
    void put_halves(const std::string& name, const std::vector<int64_t>& shape, int shrink) {
        std::uniform_int_distribution<int> fraction(0, 1023);
        const uint64_t at = static_cast<uint64_t>(file_.tellp());
        for (int64_t i = 0; i < shape[0] * shape[1]; ++i) {
            const uint16_t x = static_cast<uint16_t>((15 - shrink) << 10 | fraction(generator_));
            file_.write(reinterpret_cast<const char*>(&x), 2);
        }
        entries.push_back({name, DType::f16, shape, path_, at, uint64_t(shape[0] * shape[1]) * 2});
    }
    void add(const std::string& name, std::vector<int64_t> shape, bool with_bias) {
        put(name + ".weight", shape);
        if (with_bias) put(name + ".bias", {shape[0]});
    }
    void put(const std::string& name, const std::vector<int64_t>& shape) {
        int64_t count = 1;
        for (int64_t d : shape) count *= d;
        const bool bf16 = bundle_ ? in_bundle(name, shape) : entries.size() % 2 == 1;
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

    // Layers, patches and connector; not heads, vectors, and the keys and values of
    // cross-attention.
    bool in_bundle(const std::string& name, const std::vector<int64_t>& shape) const {
        if (shape.size() < 2) return false;
        const bool inside = name.find(".layers.") != std::string::npos && shape[1] != cross_in_;
        return inside || name == "vision.patch.weight" || name == "connector.weight";
    }

    static inline int made = 0;
    bool codes_, bundle_;
    int64_t cross_in_;
    std::string path_;
    std::ofstream file_;
    std::mt19937 generator_{3};
};

}  // namespace smolvla

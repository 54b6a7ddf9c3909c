// Every number the model needs; filled by the bindings from smolvla_edge/config.py's ModelConfig.
#pragma once

#include <string>
#include <vector>

namespace smolvla {

struct ModelConfig {
    // vision tower
    int vision_width, vision_mlp, vision_heads, vision_layers, patch_size, image_size;
    float vision_eps;
    int scale_factor;
    // language model (the prefix) and action expert
    int text_width, text_mlp, heads, kv_heads, head_dim, text_layers, vocab;
    float rms_eps;
    int expert_width, expert_mlp, expert_layers;
    bool cross_attention;
    int self_attn_every_n;
    float rope_theta;
    // inputs and outputs
    int resize_width, resize_height;  // 0, 0: frames go in at their own size
    int max_cameras, tokenizer_max_length;
    bool add_image_special_tokens;
    int fake_token_id, global_token_id;
    int chunk_size, num_steps;
    double min_period, max_period;
    int max_state_dim, max_action_dim, state_dim, action_dim;
    bool adapt_to_pi_aloha;

    int kv_width() const { return kv_heads * head_dim; }
    int q_width() const { return heads * head_dim; }

    // The expert layer that runs beside a text layer, or -1 (fewer expert than text layers).
    int expert_layer_of(int text_layer) const {
        const int every = text_layers / expert_layers;
        return text_layer % every == 0 ? text_layer / every : -1;
    }
    // Self: the expert attends to the text layer's keys and its own; else to projected text keys
    // only.
    bool is_self_layer(int text_layer) const {
        return !cross_attention || (self_attn_every_n > 0 && text_layer % self_attn_every_n == 0);
    }
    bool has_cross_layers() const {
        for (int i = 0; i < text_layers; ++i)
            if (expert_layer_of(i) >= 0 && !is_self_layer(i)) return true;
        return false;
    }
    int last_used_text_layer() const { return last_used_of(text_layers); }
    // Of the first so many text layers the last one that the expert reads.
    int last_used_of(int layers) const {
        int last = layers - 1;
        while (expert_layer_of(last) < 0) --last;
        return last;
    }

    // Patches that one image may have at most: the size of the position table.
    int max_patches() const {
        const int side = image_size / patch_size;
        return side * side;
    }
    int max_image_tokens() const { return max_patches() / (scale_factor * scale_factor); }
    int max_prefix() const {
        return max_cameras * (max_image_tokens() + 3) + tokenizer_max_length + 1;
    }

    static constexpr int kMaxSteps = 1000;  // of denoising, in the checkpoint or asked for

    // Refuses sizes that the code below would divide by, overflow on or index past.
    void check() const;
};

// Normalisation of one feature, as numbers: how to go to model space and back.
struct Statistics {
    enum class Mode { identity, mean_std, range } mode = Mode::identity;
    std::vector<float> a, b;  // mean, std   or   low, high
    float eps = 1e-8f;
    bool eps_in_range =
        false;  // older checkpoints add eps to high - low; newer only replace a zero

    void normalize(float* x, int n) const;
    void unnormalize(float* x, int n) const;
    // Refuses vectors that are not `dims` long.
    void check(const char* feature, int dims) const;
};

}  // namespace smolvla

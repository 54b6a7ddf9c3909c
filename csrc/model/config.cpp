#include "model/config.h"

#include <cmath>

#include "runtime/error.h"

namespace smolvla {

void ModelConfig::check() const {
    struct Bound {
        const char* name;
        long value, low, high;
    };
    const Bound bounds[] = {
        {"vision_width", vision_width, 1, 1 << 14},
        {"vision_mlp", vision_mlp, 1, 1 << 16},
        {"vision_heads", vision_heads, 1, 1 << 8},
        {"vision_layers", vision_layers, 1, 1 << 8},
        {"patch_size", patch_size, 1, 1 << 8},
        {"image_size", image_size, patch_size, 1 << 12},
        {"scale_factor", scale_factor, 1, 64},
        {"text_width", text_width, 1, 1 << 14},
        {"text_mlp", text_mlp, 1, 1 << 16},
        {"heads", heads, 1, 1 << 8},
        {"kv_heads", kv_heads, 1, 1 << 8},
        {"head_dim", head_dim, 2, 1 << 10},
        {"text_layers", text_layers, 1, 1 << 8},
        {"vocab", vocab, 1, 1 << 24},
        {"expert_width", expert_width, 2, 1 << 14},
        {"expert_mlp", expert_mlp, 1, 1 << 16},
        {"expert_layers", expert_layers, 1, text_layers},
        {"resize_width", resize_width, 0, 1 << 12},
        {"resize_height", resize_height, 0, 1 << 12},
        {"max_cameras", max_cameras, 1, 64},
        {"tokenizer_max_length", tokenizer_max_length, 1, 1 << 13},
        {"chunk_size", chunk_size, 1, 1 << 12},
        {"num_steps", num_steps, 1, kMaxSteps},
        {"max_state_dim", max_state_dim, 1, 1 << 12},
        {"max_action_dim", max_action_dim, 1, 1 << 12},
        {"state_dim", state_dim, 0, max_state_dim},
        {"action_dim", action_dim, 1, max_action_dim},
    };
    const auto within = [](const Bound& b) {
        if (b.value < b.low || b.value > b.high)
            fail(ErrorKind::checkpoint, "%s = %ld is outside [%ld, %ld]", b.name, b.value, b.low,
                 b.high);
    };
    for (const Bound& b : bounds) within(b);
    // Products of the above; tables of these sizes are made while loading.
    within({"patches of an image", max_patches(), 1, 1 << 14});
    within({"tokens of a prefix", max_prefix(), 1, 1 << 16});
    const std::pair<const char*, double> positive[] = {{"vision_eps", vision_eps},
                                                       {"rms_eps", rms_eps},
                                                       {"rope_theta", rope_theta},
                                                       {"min_period", min_period},
                                                       {"max_period", max_period}};
    for (const auto& [name, value] : positive)
        if (!std::isfinite(value) || value <= 0)
            fail(ErrorKind::checkpoint, "%s: expected a positive, finite number, got %g", name,
                 value);
    if ((resize_width == 0) != (resize_height == 0))
        fail(ErrorKind::checkpoint, "resize: expected a width and a height, or neither, got %d, %d",
             resize_width, resize_height);
    for (int id : {fake_token_id, global_token_id})
        if (add_image_special_tokens && (id < 0 || id >= vocab))
            fail(ErrorKind::checkpoint, "image special token %d is outside the vocabulary of %d",
                 id, vocab);
    const auto divides = [](const char* what, int a, int b) {
        if (a % b != 0) fail(ErrorKind::checkpoint, "%s: %d is not divisible by %d", what, a, b);
    };
    divides("vision_width / vision_heads", vision_width, vision_heads);
    divides("heads / kv_heads", heads, kv_heads);
    divides("head_dim / 2", head_dim, 2);
    divides("expert_width / 2", expert_width, 2);
    divides("text_layers / expert_layers", text_layers, expert_layers);
    divides("patches per side / scale_factor", image_size / patch_size, scale_factor);
    if (adapt_to_pi_aloha && (state_dim < 14 || action_dim < 14))
        fail(ErrorKind::checkpoint, "adapt_to_pi_aloha needs 14 joints, got state %d, action %d",
             state_dim, action_dim);
    for (int l = 0; l < text_layers; ++l)
        if (is_self_layer(l) && expert_layer_of(l) < 0)
            fail(ErrorKind::checkpoint, "text layer %d is a self layer without an expert layer", l);
}

void Statistics::check(const char* feature, int dims) const {
    const size_t expected = mode == Mode::identity ? 0 : static_cast<size_t>(dims);
    if (a.size() != expected || b.size() != expected)
        fail(ErrorKind::checkpoint,
             "statistics of %s: expected two vectors of %zu, got %zu and %zu", feature, expected,
             a.size(), b.size());
}

void Statistics::normalize(float* x, int n) const {
    if (mode == Mode::identity) return;
    for (int i = 0; i < n; ++i) {
        if (mode == Mode::mean_std) {
            x[i] = (x[i] - a[i]) / (b[i] + eps);
        } else {
            float range = b[i] - a[i];
            if (eps_in_range)
                range += eps;
            else if (range == 0.0f)
                range = eps;
            x[i] = 2.0f * (x[i] - a[i]) / range - 1.0f;
        }
    }
}

void Statistics::unnormalize(float* x, int n) const {
    if (mode == Mode::identity) return;
    for (int i = 0; i < n; ++i) {
        if (mode == Mode::mean_std) {
            x[i] = x[i] * b[i] + a[i];
        } else {
            float range = b[i] - a[i];
            if (!eps_in_range && range == 0.0f) range = eps;
            x[i] = (x[i] + 1.0f) / 2.0f * range + a[i];
        }
    }
}

}  // namespace smolvla

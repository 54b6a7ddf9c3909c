// Whole policies of odd sizes: widths that fill no panel, head dims around 32, one head, one patch,
// full prefixes and chunks. Under the address sanitizer every buffer of the arena ends in poison,
// so a kernel or a capacity that is off by one fails here; everywhere, every ISA gives the same
// bytes.
#include <algorithm>
#include <cstdio>

#include "check.h"
#include "isas.h"
#include "tiny_model.h"

using namespace smolvla;

namespace {

class Sizes {
public:
    int between(int low, int high) { return low + int(generator_() % unsigned(high - low + 1)); }
    int one_of(std::initializer_list<int> values) {
        return *(values.begin() + between(0, int(values.size()) - 1));
    }
    ModelConfig config() {
        ModelConfig c = tiny();
        c.vision_heads = between(1, 4), c.vision_width = c.vision_heads * between(1, 50);
        c.vision_mlp = between(1, 130), c.vision_layers = between(1, 2);
        c.scale_factor = between(1, 3);
        c.patch_size = between(1, 9);
        const int side = c.scale_factor * between(1, 7 / c.scale_factor);
        c.image_size = c.patch_size * side + between(0, c.patch_size - 1);
        c.resize_width = c.resize_height = between(0, 1) ? c.image_size : 0;
        c.kv_heads = between(1, 3), c.heads = c.kv_heads * between(1, 3);
        c.head_dim = one_of({2, 6, 16, 30, 32, 34, 64, 70});
        c.text_width = between(1, 100), c.text_mlp = between(1, 140);
        c.text_layers = c.expert_layers = between(1, 4);
        c.expert_width = 2 * between(1, 40), c.expert_mlp = between(1, 90);
        c.cross_attention = between(0, 1) == 1, c.self_attn_every_n = between(-1, 3);
        c.max_cameras = between(1, 3), c.tokenizer_max_length = between(1, 70);
        c.add_image_special_tokens = between(0, 1) == 1;
        c.fake_token_id = c.vocab - 1, c.global_token_id = 0;
        c.chunk_size = between(1, 70), c.num_steps = between(1, 3);
        c.max_state_dim = between(1, 40), c.state_dim = between(0, c.max_state_dim);
        c.max_action_dim = between(1, 40), c.action_dim = between(1, c.max_action_dim);
        return c;
    }

private:
    std::mt19937 generator_{11};
};

std::vector<float> fill_everything(const ModelConfig& c, const Weights& weights, int threads,
                                   const std::string& isa, Compute compute) {
    Engine e(c, {}, {}, weights.entries, threads, isa, compute);
    // One pixel short of another patch, the largest frame that the vision tower takes as it is.
    const int side = (c.image_size / c.patch_size + 1) * c.patch_size - 1;
    std::vector<float> frame(size_t(side) * side * 3);
    for (size_t i = 0; i < frame.size(); ++i) frame[i] = float(i % 255) / 255.0f;
    const std::vector<Frame> frames(size_t(c.max_cameras), Frame{frame.data(), false, side, side});
    const std::vector<int> tokens(size_t(c.tokenizer_max_length), c.vocab - 1);
    const std::vector<float> state(size_t(c.max_state_dim), 0.5f);
    std::vector<float> noise(size_t(c.chunk_size) * c.max_action_dim);
    for (size_t i = 0; i < noise.size(); ++i) noise[i] = std::sin(float(i));
    const FlowInput flow = flow_of(noise, c.chunk_size, c.num_steps);
    std::vector<float> normalized(size_t(c.chunk_size) * c.action_dim), actions(normalized.size());
    e.predict({frames, tokens.data(), int(tokens.size()), state.data(), false, kNoneKept}, flow,
              normalized.data(), actions.data());
    return actions;
}

}  // namespace

int main() {
    Sizes sizes;
    const std::vector<std::string> isas = runnable_isas();
    for (int round = 0; round < 60; ++round) {
        const ModelConfig c = sizes.config();
        const Weights weights(c, round % 2 == 1);
        for (Compute compute : {Compute::float32, Compute::bfloat16}) {
            std::vector<float> reference;
            for (const std::string& isa : isas) {
                const int threads = sizes.between(1, 3);
                try {
                    const std::vector<float> actions =
                        fill_everything(c, weights, threads, isa, compute);
                    if (reference.empty()) reference = actions;
                    CHECK(actions == reference);
                } catch (const Error& error) {
                    std::printf("round %d, %s, %s: %s\n", round, isa.c_str(), compute_name(compute),
                                error.what());
                    ++failures;
                }
            }
        }
    }
    return report("odd_sizes");
}

// How many kernels a stage starts: what docs/performance.md says, and benchmarks/operations.py
// counts (tests/unit/test_benchmark_operations.py holds it to the same numbers).
#include "check.h"
#include "control.h"
#include "cuda/backend.h"
#include "tiny_model.h"

using namespace smolvla;

namespace {

template <class Body>
int kernels(const Body& body) {
    const uint64_t before = emulator::counters().kernels;
    body();
    return int(emulator::counters().kernels - before);
}

struct Counts {
    int vision, prefix, step;
};

Counts count(const ModelConfig& c, Compute compute, bool codes) {
    const Weights weights(c, codes, true);
    Statistics state, action;
    state.mode = action.mode = Statistics::Mode::identity;
    Engine engine(c, state, action, weights.entries, [&](size_t bytes) {
        return make_cuda_backend(compute, bytes + (size_t{1} << 20));
    });
    const int tokens = engine.image_tokens(64, 64);
    std::vector<float> pixels(3 * 64 * 64), seen(size_t(tokens) * c.text_width);
    std::vector<float> raw(size_t(c.max_state_dim)),
        x(size_t(c.chunk_size) * c.max_action_dim, 0.5f);
    const std::vector<float> noise = x;
    const std::vector<int> words = {1, 2, 3};
    const uint8_t mask[1] = {1};
    Plan plan;
    plan.rows = c.chunk_size, plan.steps = 2;
    const auto see = [&] { engine.encode_images(pixels.data(), 1, 64, 64, 0, seen.data()); };
    const auto read = [&] {
        engine.prefill(seen.data(), 1, tokens, mask, words.data(), 3, raw.data(), plan);
    };
    const auto steps = [&](int n) {
        return kernels([&] {
            plan.steps = n;
            engine.denoise({noise.data(), plan}, x.data());
        });
    };
    see(), read();
    return {kernels(see), kernels(read), steps(3) - steps(2)};
}

// As SmolVLA: every second layer of the expert attends to itself, heads of 64, even widths.
ModelConfig sized(int vision, int text) {
    ModelConfig c = tiny();
    c.vision_width = 128, c.vision_heads = 2, c.heads = 3, c.kv_heads = 1, c.head_dim = 64;
    c.vision_layers = vision;
    c.text_layers = c.expert_layers = text;
    return c;
}

void test(Compute compute, bool codes) {
    const int rounding = codes ? 2 : 0;  // rows to int8, before out and down
    for (const auto& [vision, text] : {std::pair{2, 4}, std::pair{3, 6}}) {
        const Counts found = count(sized(vision, text), compute, codes);
        std::printf("  %s, codes %d, %d and %d layers: %d, %d and %d kernels\n",
                    compute_name(compute), codes, vision, text, found.vision, found.prefix,
                    found.step);
        // Patchify, patches, norm, shuffle, connector; of a layer norm, qkv, keys and values,
        // attention, out, norm, up, down.
        CHECK(found.vision == 5 + vision * (8 + rounding));
        // The image's tokens and the state; of every layer but the last norm, qkv, rotation with
        // keys and values, attention, out, norm, gate and up, down; of the last norm, k and v,
        // rotation; and what the expert keeps of each: keys and values, for cross-attention after
        // two projections.
        const int layers = text - 1, half = text / 2;
        CHECK(found.prefix == 2 + layers * (8 + rounding) + 3 + half * 1 + half * 3);
        // Actions, time, norm, actions out, the step and its number; of a layer the prefix's eight.
        // The expert's 4-bit weights take rows of bfloat16.
        CHECK(found.step == 6 + text * 8);
    }
}

}  // namespace

int main() {
    test(Compute::float32, false);
    test(Compute::bfloat16, false);
    test(Compute::bfloat16, true);
    return failures != 0;
}

// Whole policies on the CUDA backend and on the CPU's, and one call of either.
#pragma once

#include <algorithm>
#include <cmath>

#include "check.h"
#include "cuda/backend.h"
#include "tiny_model.h"

namespace smolvla {

// Heads of 64, as SmolVLA has them, and widths that no tile divides.
inline ModelConfig awkward() {
    ModelConfig c = tiny();
    c.vision_width = 128, c.vision_heads = 2, c.vision_mlp = 152;
    c.text_width = 200, c.heads = 3, c.kv_heads = 1, c.head_dim = 64;
    c.expert_width = 144;
    return c;
}

struct Input {
    std::vector<uint8_t> pixels = std::vector<uint8_t>(48 * 80 * 3);
    std::vector<Frame> frames;
    std::vector<int> tokens = {3, 1, 4, 1, 5};
    std::vector<float> state = {0.1f, -0.2f, 0.3f, 0.4f, -0.5f, 0.6f};
    std::vector<float> noise = std::vector<float>(8 * 8), previous = std::vector<float>(25, 0.3f);
    std::vector<int> cached = {};
    explicit Input(float shift = 0) {
        for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = uint8_t(i * 37 % 251);
        for (size_t i = 0; i < noise.size(); ++i) noise[i] = std::sin(float(i) + shift);
        frames = {{pixels.data(), true, 48, 80}, {pixels.data(), true, 30, 40}};
    }
};

inline Plan exact_plan(int rows = 8, int steps = 3) {
    Plan plan;
    plan.rows = rows;
    plan.steps = steps;
    return plan;
}

// What a call gave.
struct Answer {
    std::vector<float> actions;
    int evaluations = 0;
    std::vector<CacheReport> cache = {};
};

inline Answer ask(Engine& e, const Input& in, const FlowInput& flow) {
    const size_t count = size_t(flow.plan.rows) * 5;
    std::vector<float> normalized(count);
    Answer answer{std::vector<float>(count)};
    const Prediction made = e.predict(
        {in.frames, in.tokens.data(), int(in.tokens.size()), in.state.data(), false, in.cached},
        flow, normalized.data(), answer.actions.data());
    answer.evaluations = made.evaluations;
    for (size_t i = 0; i < in.frames.size(); ++i) answer.cache.push_back(made.cache[i]);
    return answer;
}

// guided: towards in.previous; that is what a warm start begins with too.
inline Answer ask(Engine& e, const Input& in, const Plan& plan, bool guided = false) {
    FlowInput flow{in.noise.data(), plan};
    flow.rest = {in.previous.data(), 5, 5};
    if (guided) {
        flow.guidance.previous = in.previous.data();
        flow.guidance.rows = flow.guidance.dims = 5;
        flow.guidance.inference_delay = 1;
        flow.guidance.execution_horizon = 4;
    }
    return ask(e, in, flow);
}

inline double largest(const std::vector<float>& v) {
    double most = 0;
    for (float x : v) most = std::max(most, std::fabs(double(x)));
    return most;
}
inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
    CHECK(a.size() == b.size());
    double most = 0;
    for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::fabs(double(a[i]) - b[i]));
    return most / largest(b);
}

struct Policy {
    Statistics state, action;
    Policy() {
        state.mode = Statistics::Mode::mean_std;
        state.a.assign(6, 0.1f), state.b.assign(6, 2.0f);
        action.mode = Statistics::Mode::range;
        action.a.assign(5, -3.0f), action.b.assign(5, 4.0f);
    }
    std::unique_ptr<Engine> on_gpu(const ModelConfig& c, const Weights& w, Compute compute) const {
        return std::make_unique<Engine>(c, state, action, w.entries, [&](size_t bytes) {
            return make_cuda_backend(compute, bytes + (size_t{1} << 20));
        });
    }
    std::unique_ptr<Engine> on_cpu(const ModelConfig& c, const Weights& w,
                                   Compute compute = Compute::float32) const {
        return std::make_unique<Engine>(c, state, action, w.entries, 1, "scalar", compute);
    }
};

}  // namespace smolvla

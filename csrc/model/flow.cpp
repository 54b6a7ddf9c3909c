#include "model/flow.h"

#include <algorithm>
#include <cmath>

#include "runtime/error.h"

namespace smolvla {

void guidance_weights(const Guidance& g, std::vector<float>& weights) {
    const int end = std::min(g.execution_horizon, g.rows);
    const int start = std::min(g.inference_delay, end);
    std::fill(weights.begin(), weights.end(), 0.0f);
    const int interior = end - start;
    for (int i = 0; i < end; ++i) {
        float w = 1.0f;
        if (i >= start) {
            // Interior points of linspace(1, 0, interior + 2).
            const double linear = 1.0 - double(i - start + 1) / (interior + 1);
            switch (g.schedule) {
                case Guidance::Schedule::linear: w = static_cast<float>(linear); break;
                case Guidance::Schedule::exp:
                    w = static_cast<float>(linear * std::expm1(linear) / (M_E - 1.0));
                    break;
                case Guidance::Schedule::ones: break;
                case Guidance::Schedule::zeros: w = 0.0f; break;
            }
        }
        weights[static_cast<size_t>(i)] = w;
    }
}

float guidance_gain(double t, float max_weight) {
    const float tau = static_cast<float>(1.0 - t);
    const float rest = 1.0f - tau, squared = rest * rest;
    const float gain = rest / tau * ((squared + tau * tau) / squared);
    return std::isfinite(gain) ? std::min(gain, max_weight) : max_weight;
}

Flow::Flow(const ModelConfig& c, Backend& ops, Expert& expert)
    : config_(c), ops_(ops), expert_(expert) {
    x_ = ops.make_mat(c.chunk_size, c.max_action_dim);
    previous_ = ops.make_mat(c.chunk_size, c.max_action_dim);
    weight_ = ops.make_mat(1, c.chunk_size);
    schedule_ = ops.make_mat(c.kMaxSteps, 3);
    step_ = ops.make_ints(1);
    staged_.reserve(std::max(size_t(c.chunk_size) * c.max_action_dim, size_t{3} * c.kMaxSteps));
}

void Flow::prepare(const Guidance& guidance, int rows, int steps) {
    const size_t dims = static_cast<size_t>(config_.max_action_dim);
    staged_.clear();
    for (int k = 0; k < steps; ++k) {
        const double t = 1.0 + k * (-1.0 / steps);
        staged_.push_back(static_cast<float>(-1.0 / steps));
        staged_.push_back(Expert::time_of_step(k, steps));
        staged_.push_back(guidance.previous ? guidance_gain(t, guidance.max_weight) : 0.0f);
    }
    ops_.write(staged_.data(), schedule_.top(steps));
    if (!guidance.previous) return;

    staged_.assign(static_cast<size_t>(config_.chunk_size), 0.0f);
    guidance_weights(guidance, staged_);
    ops_.write(staged_.data(), weight_);
    staged_.assign(size_t(rows) * dims, 0.0f);  // padded dims are pulled towards 0 too
    for (int r = 0; r < std::min(rows, guidance.rows); ++r)
        std::copy_n(guidance.previous + size_t(r) * guidance.dims, guidance.dims,
                    &staged_[size_t(r) * dims]);
    ops_.write(staged_.data(), previous_.top(rows));
}

void Flow::step(int rows, bool guided, Trace* trace, int traced) {
    const Mat x = x_.top(rows);
    const Mat v = expert_.velocity(x, step_, trace, traced);
    // The velocity before guidance, as the golden files have it.
    if (trace) trace->put("out.v_t.step" + std::to_string(traced), v);
    const Pull pull = guided ? Pull{previous_.top(rows), weight_.data} : Pull{};
    ops_.flow_update(x, v, schedule_, step_, pull);
    ops_.advance(step_);
}

void Flow::record(int rows, bool guided) {
    ops_.record_stage({"step", rows, guided}, [&] { step(rows, guided, nullptr, 0); });
}

void Flow::run(const float* noise, int rows, int steps, const Guidance& guidance, int prefix_tokens,
               float* out, Trace* trace, const std::function<void()>& check) {
    const Mat x = x_.top(rows);
    const bool guided = guidance.previous != nullptr;
    const int first = 0;
    ops_.write(noise, x);
    ops_.write(&first, 1, step_);
    prepare(guidance, rows, steps);
    expert_.set_steps(steps);
    expert_.follow(prefix_tokens);
    for (int k = 0; k < steps; ++k) {
        check();
        if (!trace) {
            ops_.stage({"step", rows, guided}, [&] { step(rows, guided, nullptr, 0); });
            continue;
        }
        const float time = Expert::time_of_step(k, steps);
        trace->put("mid.time.step" + std::to_string(k), {1}, &time);
        step(rows, guided, trace, k);
        trace->put("out.x_t.after_step" + std::to_string(k), x);
    }
    ops_.read(x, out);
}

}  // namespace smolvla

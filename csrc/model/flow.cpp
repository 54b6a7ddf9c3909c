#include "model/flow.h"

#include <algorithm>
#include <cmath>
#include <cstring>

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
    weights_.assign(static_cast<size_t>(c.chunk_size), 0.0f);
}

void Flow::run(const float* noise, int rows, int steps, const Guidance& guidance, int prefix_tokens,
               float* out, Trace* trace, const std::function<void()>& check) {
    const int dims = config_.max_action_dim;
    const Mat x = x_.top(rows);
    for (int r = 0; r < rows; ++r) std::copy_n(noise + size_t(r) * dims, dims, x.row(r));

    Mat previous;
    if (guidance.previous) {
        previous = previous_.top(rows);
        guidance_weights(guidance, weights_);
        for (int r = 0; r < rows; ++r) {
            std::fill_n(previous.row(r), dims, 0.0f);  // padded dims are pulled towards 0 too
            if (r < guidance.rows)
                std::copy_n(guidance.previous + size_t(r) * guidance.dims, guidance.dims,
                            previous.row(r));
        }
    }

    expert_.set_steps(steps);
    const double dt = -1.0 / steps;
    for (int step = 0; step < steps; ++step) {
        check();
        const double t = 1.0 + step * dt;
        const float time = Expert::time_of_step(step, steps);
        if (trace) trace->put("mid.time.step" + std::to_string(step), {1}, &time);
        const Mat v = expert_.velocity(x, prefix_tokens, step, trace);
        // The velocity before guidance, as the golden files have it.
        if (trace) trace->put("out.v_t.step" + std::to_string(step), v);
        ops_.flow_update(x, v, static_cast<float>(dt), time, previous, weights_.data(),
                         guidance.previous ? guidance_gain(t, guidance.max_weight) : 0.0f);
        if (trace) trace->put("out.x_t.after_step" + std::to_string(step), x);
    }
    for (int r = 0; r < rows; ++r) std::copy_n(x.row(r), dims, out + size_t(r) * dims);
}

}  // namespace smolvla

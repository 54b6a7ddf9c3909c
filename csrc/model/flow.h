// Flow matching: Euler steps from noise at t = 1 to actions at t = 0, with real-time chunking's
// guidance towards the rest of the previous chunk.
#pragma once

#include <functional>

#include "model/expert.h"

namespace smolvla {

// Guidance as LeRobot's RTC processor does it. Its Jacobian is the identity (the velocity is
// computed before the leaf is marked differentiable), so it is elementwise and needs no backward
// pass.
struct Guidance {
    enum class Schedule { linear, exp, ones, zeros };
    const float* previous = nullptr;  // [rows, dims] in model space; null: no guidance
    int rows = 0, dims = 0;
    int inference_delay = 0, execution_horizon = 0;
    Schedule schedule = Schedule::linear;
    float max_weight = 10.0f;
};

// Weight of each step of a chunk: ones up to the delay, the schedule up to the horizon, then zeros.
void guidance_weights(const Guidance& guidance, std::vector<float>& weights);
// min(max, (1 - tau) / tau * ((1 - tau)^2 + tau^2) / (1 - tau)^2), tau = 1 - t; max at tau = 0.
float guidance_gain(double t, float max_weight);

class Flow {
public:
    Flow(const ModelConfig& config, Backend& ops, Expert& expert);

    // noise, out: [rows, max_action_dim] of the host's, rows <= chunk_size. `check` runs between
    // steps and may throw.
    void run(const float* noise, int rows, int steps, const Guidance& guidance, int prefix_tokens,
             float* out, Trace* trace, const std::function<void()>& check);
    // Records the stage of a step of so many rows.
    void record(int rows, bool guided);

private:
    void prepare(const Guidance& guidance, int rows, int steps);
    void step(int rows, bool guided, Trace* trace, int traced);

    const ModelConfig config_;
    Backend& ops_;
    Expert& expert_;
    Mat x_, previous_;
    Mat weight_;    // [1, chunk_size]: how much each row is pulled
    Mat schedule_;  // of each step dt, t and the gain of guidance
    int* step_;     // the next one
    std::vector<float> staged_;
};

}  // namespace smolvla

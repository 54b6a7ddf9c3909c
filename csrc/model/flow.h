// Flow matching: steps from noise at t = 1 to actions at t = 0, with real-time chunking's guidance
// towards the rest of the previous chunk, or begun with it.
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

// What is left of the previous chunk, to begin with instead of noise.
struct Rest {
    const float* values = nullptr;  // [rows, dims] in model space; null: there is none
    int rows = 0, dims = 0;
};

// What one call takes beside the prefix.
struct FlowInput {
    const float* noise;  // [plan.rows, max_action_dim]
    Plan plan;
    Guidance guidance = {};
    Rest rest = {};  // looked at with plan.warm_start alone
};

// Weight of each step of a chunk: ones up to the delay, the schedule up to the horizon, then zeros.
void guidance_weights(const Guidance& guidance, std::vector<float>& weights);
// min(max, (1 - tau) / tau * ((1 - tau)^2 + tau^2) / (1 - tau)^2), tau = 1 - t; max at tau = 0.
float guidance_gain(double t, float max_weight);

class Flow {
public:
    Flow(const ModelConfig& config, Backend& ops, Expert& expert);

    // out: [rows, max_action_dim] of the host's. Returns how often the velocity was evaluated.
    // `check` runs between steps and may throw.
    int run(const FlowInput& input, int prefix_tokens, float* out, Trace* trace,
            const std::function<void()>& check);
    // Records the stages of a plan's steps.
    void record(const Plan& plan, bool guided);
    // Whether the last of so many evaluations has left in the expert's looked_at() what it looked
    // at.
    bool watched(const Plan& plan, int evaluations) const;

private:
    // How steps are made, the same for all of a call.
    struct Way {
        int rows;
        bool guided, ab2, estimate;
        Expert::Layers layers;
        StageKey key(const char* name) const {
            return {name, rows, guided | ab2 << 1 | estimate << 2 | layers.watch << 3,
                    0,    0,    {layers.skip, layers.reuse, layers.keep}};
        }
    };
    Way way(const Plan& plan, bool guided, int evaluation) const;
    void begin(const FlowInput& input);
    void write_schedule(const Guidance& guidance);
    void write_guidance(const Guidance& guidance, int rows);
    Pull pull(const Way& way) const;
    void evaluate(const Way& way, Trace* trace, int traced);
    void estimate(const Way& way);
    void update(const Way& way);
    void step(const Way& way, Trace* trace, int traced);
    // The next step is row `row` of the schedule.
    void run_step(const Way& way, Trace* trace, int evaluation, int row);
    void first_half(const Way& way, Trace* trace);
    void look_half_way(const Way& way, Trace* trace);
    int run_adaptive(const Way& way, const Plan& plan, Trace* trace,
                     const std::function<void()>& check);
    bool settled(const Plan& plan);
    double cosine(int rows);

    const ModelConfig config_;
    Backend& ops_;
    Expert& expert_;
    Mat x_, previous_;
    Mat last_;                          // the velocity before, of ab2 and of adaptive plans
    Mat estimate_, new_estimate_;       // of the chunk: x - t v
    Mat sums_;                          // of a comparison of rows
    Mat weight_;                        // [1, chunk_size]: how much each row is pulled
    Mat schedule_, estimate_schedule_;  // rows as flow_update takes them
    int* step_;                         // the next one
    Schedule steps_;
    std::vector<float> staged_, compared_;
};

}  // namespace smolvla

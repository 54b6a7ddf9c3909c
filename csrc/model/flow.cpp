#include "model/flow.h"

#include <algorithm>
#include <cmath>

#include "runtime/error.h"

namespace smolvla {
namespace {

constexpr int kStepNumbers = 5;         // of a row of flow_update's schedule
constexpr int kSums = 5, kLargest = 4;  // of Backend::compare

}  // namespace

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
    const int most = most_steps(c.kMaxSteps);
    for (Mat* rows : {&x_, &previous_, &last_, &estimate_, &new_estimate_})
        *rows = ops.make_mat(c.chunk_size, c.max_action_dim);
    sums_ = ops.make_mat(c.chunk_size, kSums);
    weight_ = ops.make_mat(1, c.chunk_size);
    schedule_ = ops.make_mat(most, kStepNumbers);
    estimate_schedule_ = ops.make_mat(most, kStepNumbers);
    step_ = ops.make_ints(1);
    steps_.steps.reserve(static_cast<size_t>(most));
    staged_.reserve(std::max(size_t(c.chunk_size) * c.max_action_dim, size_t{kStepNumbers} * most));
    compared_.reserve(size_t{kSums} * c.chunk_size);
}

void Flow::write_schedule(const Guidance& guidance) {
    const int count = static_cast<int>(steps_.steps.size());
    for (const bool estimate : {false, true}) {
        staged_.clear();
        for (const FlowStep& s : steps_.steps) {
            const float t = static_cast<float>(s.t);
            const float gain = guidance.previous ? guidance_gain(s.t, guidance.max_weight) : 0.0f;
            const float row[kStepNumbers] = {estimate ? -t : s.dt, t, gain, s.now, s.before};
            staged_.insert(staged_.end(), row, row + kStepNumbers);
        }
        ops_.write(staged_.data(), (estimate ? estimate_schedule_ : schedule_).top(count));
    }
}

void Flow::write_guidance(const Guidance& guidance, int rows) {
    const size_t dims = static_cast<size_t>(config_.max_action_dim);
    staged_.assign(static_cast<size_t>(config_.chunk_size), 0.0f);
    guidance_weights(guidance, staged_);
    ops_.write(staged_.data(), weight_);
    staged_.assign(size_t(rows) * dims, 0.0f);  // padded dims are pulled towards 0 too
    for (int r = 0; r < std::min(rows, guidance.rows); ++r)
        std::copy_n(guidance.previous + size_t(r) * guidance.dims, guidance.dims,
                    &staged_[size_t(r) * dims]);
    ops_.write(staged_.data(), previous_.top(rows));
}

// x where the flow begins: noise, or noise and what is left of the last chunk, whose last row is
// repeated where it ends.
void Flow::begin(const FlowInput& in) {
    const int rows = in.plan.rows, dims = config_.max_action_dim;
    const bool warm = in.plan.warm_start > 0 && in.rest.values && in.rest.rows > 0;
    make_schedule(in.plan, warm ? double{in.plan.warm_start} : 1.0, steps_);
    if (!warm) return ops_.write(in.noise, x_.top(rows));
    const float start = in.plan.warm_start;
    staged_.resize(size_t(rows) * dims);
    for (int r = 0; r < rows; ++r) {
        const float* rest = in.rest.values + size_t(std::min(r, in.rest.rows - 1)) * in.rest.dims;
        for (int d = 0; d < dims; ++d) {
            const size_t at = size_t(r) * dims + d;
            staged_[at] =
                start * in.noise[at] + (1.0f - start) * (d < in.rest.dims ? rest[d] : 0.0f);
        }
    }
    ops_.write(staged_.data(), x_.top(rows));
}

Flow::Way Flow::way(const Plan& plan, bool guided, int evaluation) const {
    Way w{plan.rows, guided, plan.ab2, plan.stop >= 0, {}};
    w.layers.skip = plan.skip_expert;
    for (int t = plan.exit; plan.exit && t < config_.text_layers; ++t)
        if (const int layer = config_.expert_layer_of(t); layer >= 0)
            w.layers.skip |= LayerSet{1} << layer;
    if (!plan.reuse.empty()) {
        w.layers.reuse = plan.reuse[size_t(evaluation)];
        for (const LayerSet set : plan.reuse) w.layers.keep |= set;
    }
    // Any evaluation may be the last one where that is decided on the way.
    const bool may_be_last = plan.adaptive || plan.stop >= 0 || evaluation + 1 == plan.steps;
    w.layers.watch = plan.watches() && may_be_last;
    return w;
}

Pull Flow::pull(const Way& w) const {
    return w.guided ? Pull{previous_.top(w.rows), weight_.data} : Pull{};
}

void Flow::evaluate(const Way& w, Trace* trace, int traced) {
    expert_.evaluate(x_.top(w.rows), step_, w.layers, trace, traced);
    // The velocity before guidance, as the golden files have it.
    if (trace) trace->put("out.v_t.step" + std::to_string(traced), expert_.velocity(w.rows));
}

// The chunk that a straight way from here would end in, beside the last such.
void Flow::estimate(const Way& w) {
    const Mat now = new_estimate_.top(w.rows), before = estimate_.top(w.rows);
    ops_.copy(x_.top(w.rows), 1.0f, now);
    ops_.flow_update(now, expert_.velocity(w.rows), estimate_schedule_, step_, pull(w), {});
    ops_.compare(now, before, config_.action_dim, sums_.top(w.rows));
    ops_.copy(now, 1.0f, before);
}

void Flow::update(const Way& w) {
    ops_.flow_update(x_.top(w.rows), expert_.velocity(w.rows), schedule_, step_, pull(w),
                     w.ab2 ? last_.top(w.rows) : Mat{});
    ops_.advance(step_);
}

void Flow::step(const Way& w, Trace* trace, int traced) {
    evaluate(w, trace, traced);
    if (w.estimate) estimate(w);
    update(w);
}

void Flow::run_step(const Way& w, Trace* trace, int evaluation, int row) {
    if (!trace) return ops_.stage(w.key("step"), [&] { step(w, nullptr, 0); });
    const float time = static_cast<float>(steps_.steps[size_t(row)].t);
    trace->put("mid.time.step" + std::to_string(evaluation), {1}, &time);
    step(w, trace, evaluation);
    trace->put("out.x_t.after_step" + std::to_string(evaluation), x_.top(w.rows));
}

bool Flow::settled(const Plan& plan) {
    compared_.resize(size_t{kSums} * plan.rows);
    ops_.read(sums_.top(plan.rows), compared_.data());
    for (int r = 0; r < plan.rows; ++r)
        if (!(compared_[size_t{kSums} * r + kLargest] <= plan.stop)) return false;  // nor with NaN
    return true;
}

// Of the velocity at the beginning and the one half way.
double Flow::cosine(int rows) {
    compared_.resize(size_t{kSums} * rows);
    ops_.read(sums_.top(rows), compared_.data());
    double ab = 0, aa = 0, bb = 0;
    for (int r = 0; r < rows; ++r) {
        const float* sums = &compared_[size_t{kSums} * r];
        ab += sums[0], aa += sums[1], bb += sums[2];
    }
    return ab / std::sqrt(aa * bb);
}

void Flow::first_half(const Way& w, Trace* trace) {
    evaluate(w, trace, 0);
    ops_.flow_update(x_.top(w.rows), expert_.velocity(w.rows), schedule_, step_, pull(w),
                     last_.top(w.rows));
    ops_.advance(step_);
}

// The velocity, and as it is after guidance beside the one of the beginning.
void Flow::look_half_way(const Way& w, Trace* trace) {
    evaluate(w, trace, 1);
    const Mat thrown_away = new_estimate_.top(w.rows), velocity = estimate_.top(w.rows);
    ops_.copy(x_.top(w.rows), 1.0f, thrown_away);
    ops_.flow_update(thrown_away, expert_.velocity(w.rows), schedule_, step_, pull(w), velocity);
    ops_.compare(last_.top(w.rows), velocity, config_.action_dim, sums_.top(w.rows));
}

int Flow::run_adaptive(const Way& w, const Plan& plan, Trace* trace,
                       const std::function<void()>& check) {
    const auto run = [&](const char* name, Body body) {
        trace ? body() : ops_.stage(w.key(name), body);
    };
    run("first half", [&] { first_half(w, trace); });
    check();
    run("half way", [&] { look_half_way(w, trace); });
    const double agreement = cosine(w.rows);
    const int branch = agreement > plan.high ? 0 : agreement > plan.low ? 1 : 2;
    ops_.write(&steps_.branch[branch], 1, step_);
    run("update", [&] { update(w); });
    for (int k = 1; k < steps_.branch_steps[branch]; ++k) {
        check();
        run_step(w, trace, k + 1, steps_.branch[branch] + k);
    }
    return 1 + steps_.branch_steps[branch];
}

bool Flow::watched(const Plan& plan, int evaluations) const {
    return plan.watches() &&
           expert_.looks(way(plan, false, plan.adaptive ? 0 : evaluations - 1).layers);
}

void Flow::record(const Plan& plan, bool guided) {
    if (plan.watches()) expert_.make_looked_at();
    const Way first = way(plan, guided, 0);
    if (plan.adaptive) {
        ops_.record_stage(first.key("first half"), [&] { first_half(first, nullptr); });
        ops_.record_stage(first.key("half way"), [&] { look_half_way(first, nullptr); });
        ops_.record_stage(first.key("update"), [&] { update(first); });
    }
    for (int k = 0; k < plan.steps; ++k) {
        const Way w = way(plan, guided, k);
        ops_.record_stage(w.key("step"), [&] { step(w, nullptr, 0); });
    }
}

int Flow::run(const FlowInput& in, int prefix_tokens, float* out, Trace* trace,
              const std::function<void()>& check) {
    const Plan& plan = in.plan;
    const bool guided = in.guidance.previous != nullptr;
    const int first = 0;
    if (plan.watches()) expert_.make_looked_at();
    begin(in);
    ops_.write(&first, 1, step_);
    write_schedule(in.guidance);
    if (guided) write_guidance(in.guidance, plan.rows);
    if (plan.ab2 || plan.adaptive) {  // nothing came before; what a failed call left may be NaN
        staged_.assign(size_t(plan.rows) * config_.max_action_dim, 0.0f);
        ops_.write(staged_.data(), last_.top(plan.rows));
    }
    expert_.set_times(steps_.steps);
    expert_.follow(prefix_tokens);
    check();
    int evaluations = 0;
    Mat result = x_.top(plan.rows);
    if (plan.adaptive) {
        evaluations = run_adaptive(way(plan, guided, 0), plan, trace, check);
    } else {
        for (bool done = false; !done && evaluations < plan.steps; ++evaluations) {
            if (evaluations > 0) check();
            run_step(way(plan, guided, evaluations), trace, evaluations, evaluations);
            done = plan.stop >= 0 && evaluations > 0 && settled(plan);
            if (done) result = estimate_.top(plan.rows);
        }
    }
    ops_.read(result, out);
    return evaluations;
}

}  // namespace smolvla

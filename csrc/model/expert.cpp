#include "model/expert.h"

#include <algorithm>
#include <cmath>

#include "model/vision.h"

namespace smolvla {

Expert::Expert(const ModelConfig& c, const TensorSource& source, Backend& ops)
    : config_(c), ops_(ops) {
    const int width = c.expert_width, kv = c.kv_width();
    const int prefix = ops.stage_rows(c.max_prefix());
    for (int t = 0; t < c.text_layers; ++t) {
        const int e = c.expert_layer_of(t);
        if (e < 0) continue;
        const std::string at = "expert.layers." + std::to_string(e) + ".";
        const std::string q = at + "attn.q.weight", k = at + "attn.k.weight",
                          v = at + "attn.v.weight";
        Layer l{};
        l.text_layer = t;
        l.self = c.is_self_layer(t);
        l.block.norm1 = load_vector(source, ops, at + "norm1.weight", width);
        l.block.norm2 = load_vector(source, ops, at + "norm2.weight", width);
        if (l.self) {
            l.block.qkv =
                ops.load_linear(source, {q, k, v}, {}, width, {c.q_width(), kv, kv}, false);
        } else {
            l.block.qkv = ops.load_linear(source, {q}, {}, width, {c.q_width()}, false);
            l.cross_k = ops.load_linear(source, {k}, {}, kv, {kv}, false);
            l.cross_v = ops.load_linear(source, {v}, {}, kv, {kv}, false);
        }
        l.block.out =
            ops.load_linear(source, {at + "attn.o.weight"}, {}, c.q_width(), {width}, false);
        l.block.gate_up = ops.load_linear(source, {at + "mlp.gate.weight", at + "mlp.up.weight"},
                                          {}, width, {c.expert_mlp, c.expert_mlp}, true);
        l.block.down =
            ops.load_linear(source, {at + "mlp.down.weight"}, {}, c.expert_mlp, {width}, false);
        l.kv = ops.make_kv(c.kv_heads, c.head_dim, prefix + (l.self ? c.chunk_size : 0));
        l.update = ops.make_mat(c.chunk_size, width);
        layers_.push_back(l);
    }
    norm_ = load_vector(source, ops, "expert.norm.weight", width);
    fold_time_mlp(source);
    time_out_ =
        ops.load_linear(source, {"time_out.weight"}, {"time_out.bias"}, width, {width}, false);
    action_out_ = ops.load_linear(source, {"action_out.weight"}, {"action_out.bias"}, width,
                                  {c.max_action_dim}, false);
    rope_ = make_rope_table(c, ops, prefix + c.chunk_size);
    cross_k_ = ops.make_mat(prefix, kv);
    cross_v_ = ops.make_mat(prefix, kv);
    const int rows = c.chunk_size;
    suffix_ = ops.make_mat(rows, width);
    x_ = ops.make_mat(rows, width);
    normed_ = ops.make_activation(rows, width);
    qkv_ = ops.make_mat(rows, c.q_width() + 2 * kv);
    attended_ = ops.make_activation(rows, c.q_width(), c.head_dim);
    hidden_ = ops.make_activation(rows, c.expert_mlp);
    final_ = ops.make_mat(rows, width);
    velocity_ = ops.make_mat(rows, c.max_action_dim);
    host_lengths_.assign(static_cast<size_t>(rows), 0);
    self_lengths_ = ops.make_ints(static_cast<size_t>(rows));
    cross_lengths_ = ops.make_ints(static_cast<size_t>(rows));
    first_ = ops.make_ints(1);
    // The table is used as a bias, which the backend reads in whole panels: pad the rows.
    time_table_ = ops.make_mat(most_steps(c.kMaxSteps), (width + 63) / 64 * 64);
    time_row_.assign(static_cast<size_t>(time_table_.cols), 0.0f);
    wave_.assign(static_cast<size_t>(width), 0.0f);
    times_.reserve(static_cast<size_t>(time_table_.rows));
}

// action_time_mlp_in([action_in(x) | time]) = (W_action A) x + (W_time time + W_action a + b):
// a [width, max_action_dim] matrix and one vector per step. Folded in double, rounded once.
void Expert::fold_time_mlp(const TensorSource& source) {
    const int width = config_.expert_width, dims = config_.max_action_dim;
    const size_t w = static_cast<size_t>(width);
    const TensorEntry& mlp_entry = source.expect("time_in.weight", {width, 2 * width});
    const TensorEntry& bias_entry = source.expect("time_in.bias", {width});
    const TensorEntry& action_entry = source.expect("action_in.weight", {width, dims});
    const TensorEntry& action_bias_entry = source.expect("action_in.bias", {width});
    // For set_steps, which makes the table of them on the host.
    float* time_weight = ops_.make_host_weights("time half of time_in", w * w);
    float* time_bias = ops_.make_host_weights("folded bias of time_in", w);
    time_weight_ = time_weight;
    time_bias_ = time_bias;
    const std::string folded_name = "time_in after action_in";
    if (ops_.weights_filled()) {
        action_in_ = ops_.make_linear(folded_name, nullptr, width, dims);
        return;
    }

    std::vector<float> mlp(w * 2 * w), action(w * static_cast<size_t>(dims)), action_bias(w);
    source.read_f32(mlp_entry, 0, 2 * w * w, mlp.data());
    source.read_f32(bias_entry, 0, width, time_bias);
    source.read_f32(action_entry, 0, w * dims, action.data());
    source.read_f32(action_bias_entry, 0, width, action_bias.data());

    std::vector<float> folded(w * static_cast<size_t>(dims));
    std::vector<double> sums(static_cast<size_t>(dims));
    for (size_t o = 0; o < w; ++o) {
        const float* row = &mlp[o * 2 * w];
        std::fill(sums.begin(), sums.end(), 0.0);
        double bias = time_bias[o];
        for (size_t k = 0; k < w; ++k) {
            for (int d = 0; d < dims; ++d) sums[d] += double(row[k]) * double(action[k * dims + d]);
            bias += double(row[k]) * double(action_bias[k]);
        }
        for (int d = 0; d < dims; ++d) folded[o * dims + d] = static_cast<float>(sums[d]);
        time_bias[o] = static_cast<float>(bias);
        std::copy_n(row + w, w, time_weight + o * w);
    }
    action_in_ = ops_.make_linear(folded_name, folded.data(), width, dims);
}

void Expert::set_times(const std::vector<FlowStep>& steps) {
    const auto same = [](float time, const FlowStep& step) {
        return time == static_cast<float>(step.t);
    };
    if (std::equal(times_.begin(), times_.end(), steps.begin(), steps.end(), same)) return;
    const int width = config_.expert_width, half = width / 2;
    times_.clear();
    for (const FlowStep& step : steps) {
        const double t = static_cast<float>(step.t);
        for (int i = 0; i < half; ++i) {
            const double fraction = half > 1 ? double(i) / (half - 1) : 0.0;
            const double period =
                config_.min_period * std::pow(config_.max_period / config_.min_period, fraction);
            const double angle = 1.0 / period * 2.0 * M_PI * t;
            wave_[i] = static_cast<float>(std::sin(angle));
            wave_[half + i] = static_cast<float>(std::cos(angle));
        }
        for (int o = 0; o < width; ++o) {
            double sum = time_bias_[o];
            const float* row = time_weight_ + size_t(o) * width;
            for (int k = 0; k < width; ++k) sum += double(row[k]) * double(wave_[k]);
            time_row_[o] = static_cast<float>(sum);
        }
        ops_.write(time_row_.data(), time_table_.below(static_cast<int>(times_.size()), 1));
        times_.push_back(static_cast<float>(step.t));
    }
}

void Expert::set_prefix(int text_layer, Mat keys, Mat values, LayerSet skip) {
    for (size_t i = 0; i < layers_.size(); ++i) {
        const Layer& l = layers_[i];
        if (l.text_layer != text_layer || has(skip, static_cast<int>(i))) continue;
        if (l.self) {
            ops_.store_kv(keys, values, l.kv, nullptr);
        } else {
            const Mat k = cross_k_.top(keys.rows), v = cross_v_.top(keys.rows);
            ops_.linear(keys, l.cross_k, k, {});
            ops_.linear(values, l.cross_v, v, {});
            ops_.store_kv(k, v, l.kv, nullptr);
        }
    }
}

void Expert::make_looked_at() {
    if (!looked_at_.data)
        looked_at_ = ops_.make_mat(config_.heads, ops_.stage_rows(config_.max_prefix()));
}

bool Expert::looks(const Layers& layers) const {
    for (size_t i = 0; i < layers_.size(); ++i)
        if (!layers_[i].self && !has(layers.skip | layers.reuse, static_cast<int>(i))) return true;
    return false;
}

void Expert::follow(int prefix_tokens) {
    const size_t rows = host_lengths_.size();
    // Action tokens are causal among themselves and follow the whole prefix.
    for (size_t r = 0; r < rows; ++r) host_lengths_[r] = prefix_tokens + static_cast<int>(r) + 1;
    ops_.write(host_lengths_.data(), rows, self_lengths_);
    std::fill(host_lengths_.begin(), host_lengths_.end(), prefix_tokens);
    ops_.write(host_lengths_.data(), rows, cross_lengths_);
    ops_.write(&prefix_tokens, 1, first_);
}

void Expert::evaluate(Mat actions, const int* step, const Layers& layers, Trace* trace,
                      int traced) {
    const int rows = actions.rows;
    const Mat x = x_.top(rows);
    Trace* first = traced == 0 ? trace : nullptr;

    LinearOptions time;
    time.bias = time_table_.data;
    time.bias_row = step;
    time.bias_ld = time_table_.ld;
    time.activation = Activation::silu;
    ops_.linear(actions, action_in_, suffix_.top(rows), time);
    ops_.linear(suffix_.top(rows), time_out_, x, {});
    if (trace) trace->put("mid.suffix_embs.step" + std::to_string(traced), x);

    Watch watch = layers.watch ? Watch::first : Watch::no;
    for (size_t i = 0; i < layers_.size(); ++i) {
        const int index = static_cast<int>(i);
        if (has(layers.skip, index)) continue;
        const Layer& l = layers_[i];
        const Mat update = l.update.top(rows);
        if (has(layers.reuse, index)) {
            ops_.add(x, update, 1.0f, x);
            continue;
        }
        const bool keep = has(layers.keep, index);
        if (keep) ops_.copy(x, 1.0f, update);
        run(l, x, l.self ? Watch::no : watch);
        if (watch == Watch::first && !l.self) watch = Watch::more;
        if (keep) ops_.add(x, update, -1.0f, update);
        if (first) first->put("mid.step0.expert_layer" + std::to_string(l.text_layer), x);
    }
    const Mat final = final_.top(rows);
    ops_.rms_norm(x, norm_, config_.rms_eps, final);
    if (first) first->put("mid.step0.expert_out_normed", final);
    ops_.linear(final, action_out_, velocity(rows), {});
}

void Expert::run(const Layer& l, Mat x, Watch watch) {
    const int rows = x.rows, q = config_.q_width(), kv = config_.kv_width();
    const Mat normed = normed_.top(rows), qkv = qkv_.top(rows);
    const Mat attended = attended_.top(rows), hidden = hidden_.top(rows);
    const Mat for_qkv = ops_.operand(normed, l.block.qkv);
    const Mat for_mlp = ops_.operand(normed, l.block.gate_up);
    LinearOptions add;
    add.residual = x;
    ops_.rms_norm(x, l.block.norm1, config_.rms_eps, for_qkv);
    const AttentionShape shape{config_.heads, config_.kv_heads, config_.head_dim,
                               l.self ? self_lengths_ : cross_lengths_};
    if (l.self) {
        const Mat k = qkv.columns(q, kv), v = qkv.columns(q + kv, kv);
        ops_.linear(for_qkv, l.block.qkv, qkv, {});
        ops_.rope_store(qkv.columns(0, q), config_.heads, k, v, rope_.cosine, rope_.sine, first_,
                        l.kv);
    } else {
        // Projected keys get no second RoPE; queries count from 0 and see the prefix only.
        ops_.linear(for_qkv, l.block.qkv, qkv.columns(0, q), {});
        ops_.rope(qkv.columns(0, q), config_.heads, rope_.cosine, rope_.sine, nullptr);
    }
    ops_.attention(qkv.columns(0, q), l.kv, shape, attended);
    if (watch != Watch::no)
        ops_.attention_mass(qkv.columns(0, q), l.kv, shape, watch == Watch::more, looked_at_);
    ops_.linear(attended, l.block.out, x, add);
    ops_.rms_norm(x, l.block.norm2, config_.rms_eps, for_mlp);
    ops_.linear(for_mlp, l.block.gate_up, hidden, {});
    ops_.linear(hidden, l.block.down, x, add);
}

}  // namespace smolvla

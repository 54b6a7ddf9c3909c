#include "model/prefix.h"

#include <algorithm>
#include <cmath>

#include "model/vision.h"
#include "runtime/error.h"

namespace smolvla {

RopeTable make_rope_table(const ModelConfig& c, Backend& ops, int positions) {
    const int half = c.head_dim / 2;
    RopeTable table{ops.make_mat(positions, half), ops.make_mat(positions, half)};
    std::vector<float> cosine(size_t(positions) * half), sine(cosine.size());
    for (int i = 0; i < half; ++i) {
        const float exponent = (2.0f / static_cast<float>(c.head_dim)) * static_cast<float>(i);
        const float timescale = std::pow(c.rope_theta, exponent);
        for (int p = 0; p < positions; ++p) {
            const float angle = static_cast<float>(p) / timescale;
            cosine[size_t(p) * half + i] = static_cast<float>(std::cos(double(angle)));
            sine[size_t(p) * half + i] = static_cast<float>(std::sin(double(angle)));
        }
    }
    ops.write(cosine.data(), table.cosine);
    ops.write(sine.data(), table.sine);
    return table;
}

Prefix::Prefix(const ModelConfig& c, TensorSource& source, Backend& ops, Expert& expert)
    : config_(c), ops_(ops), expert_(expert) {
    const int last = c.last_used_text_layer();
    for (int i = 0; i <= last; ++i) {
        const std::string at = "text.layers." + std::to_string(i) + ".";
        const std::string k = at + "attn.k.weight", v = at + "attn.v.weight";
        Block l{};
        l.norm1 = load_vector(source, ops, at + "norm1.weight", c.text_width);
        if (i == last) {  // nobody reads what this layer would pass on
            l.qkv = ops.load_linear(source, {k, v}, {}, c.text_width, {c.kv_width(), c.kv_width()},
                                    false);
            layers_.push_back(l);
            break;
        }
        l.qkv = ops.load_linear(source, {at + "attn.q.weight", k, v}, {}, c.text_width,
                                {c.q_width(), c.kv_width(), c.kv_width()}, false);
        l.out =
            ops.load_linear(source, {at + "attn.o.weight"}, {}, c.q_width(), {c.text_width}, false);
        l.norm2 = load_vector(source, ops, at + "norm2.weight", c.text_width);
        l.gate_up = ops.load_linear(source, {at + "mlp.gate.weight", at + "mlp.up.weight"}, {},
                                    c.text_width, {c.text_mlp, c.text_mlp}, true);
        l.down = ops.load_linear(source, {at + "mlp.down.weight"}, {}, c.text_mlp, {c.text_width},
                                 false);
        layers_.push_back(l);
    }
    state_in_ = ops.load_linear(source, {"state_in.weight"}, {"state_in.bias"}, c.max_state_dim,
                                {c.text_width}, false);
    load_embedding(source);

    const int n = ops.stage_rows(c.max_prefix());
    rope_ = make_rope_table(c, ops, n);
    kv_ = ops.make_kv(c.kv_heads, c.head_dim, n);
    host_lengths_.assign(static_cast<size_t>(n), 0);
    lengths_ = ops.make_ints(static_cast<size_t>(n));
    x_ = ops.make_mat(n, c.text_width);
    normed_ = ops.make_activation(n, c.text_width);
    qkv_ = ops.make_mat(n, c.q_width() + 2 * c.kv_width());
    attended_ = ops.make_activation(n, c.q_width(), c.head_dim);
    hidden_ = ops.make_activation(n, c.text_mlp);
    state_ = ops.make_mat(1, c.max_state_dim);
}

void Prefix::load_embedding(TensorSource& source) {
    const std::string name = "text.embed.weight", scale = name + ".scale";
    const TensorEntry& entry = source.expect(name, {config_.vocab, config_.text_width});
    if (entry.dtype == DType::i8) {
        embedding_scales_.resize(static_cast<size_t>(config_.vocab));
        const TensorEntry& scales = source.expect(scale, {config_.vocab});
        if (scales.dtype != DType::f32)
            fail(ErrorKind::checkpoint, "tensor %s: expected scales of F32", scale.c_str());
        source.read_f32(scales, 0, config_.vocab, embedding_scales_.data());
        for (float s : embedding_scales_)
            if (!std::isfinite(s) || s < 0)
                fail(ErrorKind::checkpoint, "tensor %s has a scale of %g", scale.c_str(),
                     double{s});
    } else if (entry.dtype == DType::u8) {
        fail(ErrorKind::checkpoint, "tensor %s: expected floats or codes of 8 bits", name.c_str());
    }
    embedding_ = {source.map(entry), entry.dtype,
                  embedding_scales_.empty() ? nullptr : embedding_scales_.data()};
}

void Prefix::begin() { count_ = 0; }

Mat Prefix::next_rows(int count) {
    const int room = config_.max_prefix();
    if (count > room - count_)
        fail(ErrorKind::input, "the prefix has room for %d tokens, %d more do not fit after %d",
             room, count, count_);
    count_ += count;
    return x_.below(count_ - count, count);
}

void Prefix::add_special(int id) { ops_.gather_rows(embedding_, &id, 1, 1.0f, next_rows(1)); }

int Prefix::add_image(Mat tokens, bool masked) {
    // Special tokens are valid even around a masked camera, and are not scaled (as in LeRobot).
    if (config_.add_image_special_tokens) {
        add_special(config_.fake_token_id);
        add_special(config_.global_token_id);
    }
    const int first = count_;
    if (!masked)
        ops_.copy(tokens, std::sqrt(static_cast<float>(config_.text_width)),
                  next_rows(tokens.rows));
    if (config_.add_image_special_tokens) add_special(config_.fake_token_id);
    return first;
}

void Prefix::add_text(const int* ids, int count) {
    for (int i = 0; i < count; ++i)
        if (ids[i] < 0 || ids[i] >= config_.vocab)
            fail(ErrorKind::input, "token %d is outside the vocabulary of %d", ids[i],
                 config_.vocab);
    ops_.gather_rows(embedding_, ids, count, std::sqrt(static_cast<float>(config_.text_width)),
                     next_rows(count));
}

void Prefix::add_state(const float* state) {
    ops_.write(state, state_);
    ops_.linear(state_, state_in_, next_rows(1), {});
}

int Prefix::run(const Plan& plan, Trace* trace) {
    const int n = count_;
    // Images and text attend to each other; only the state token attends to itself.
    const int rows = trace ? n : ops_.stage_rows(n);
    std::fill_n(host_lengths_.begin(), rows, n - 1);
    host_lengths_[static_cast<size_t>(n - 1)] = n;
    ops_.write(host_lengths_.data(), static_cast<size_t>(rows), lengths_);
    if (trace)
        run_layers(plan, rows, trace);
    else
        run_stage(plan, rows, false);
    return n;
}

void Prefix::record(const Plan& plan, int tokens) {
    run_stage(plan, ops_.stage_rows(tokens), true);
}

void Prefix::run_stage(const Plan& plan, int rows, bool record) {
    const StageKey key{"prefix", rows, plan.exit, 0, 0, {plan.skip_vlm, plan.skip_expert}};
    const auto body = [&] { run_layers(plan, rows, nullptr); };
    record ? ops_.record_stage(key, body) : ops_.stage(key, body);
}

void Prefix::run_layers(const Plan& plan, int n, Trace* trace) {
    const int q = config_.q_width(), kv = config_.kv_width();
    const Mat x = x_.top(n), normed = normed_.top(n), qkv = qkv_.top(n), hidden = hidden_.top(n);
    const Mat attended = attended_.top(n);
    if (trace) trace->put("out.prefix_embs", x);
    const AttentionShape shape{config_.heads, config_.kv_heads, config_.head_dim, lengths_};

    LinearOptions add;
    add.residual = x;
    const int layers = plan.exit ? plan.exit : config_.text_layers;
    const int last = config_.last_used_of(layers);
    for (int index = 0; index <= last; ++index) {
        const size_t i = static_cast<size_t>(index);
        const Block& l = layers_[i];
        const bool ends = index == last || has(plan.skip_vlm, index);
        const int queries = i + 1 == layers_.size() ? 0 : q;  // columns of q in front of k
        const Mat k = qkv.columns(queries, kv), v = qkv.columns(queries + kv, kv);
        const Mat for_qkv = ops_.operand(normed, l.qkv);
        ops_.rms_norm(x, l.norm1, config_.rms_eps, for_qkv);
        ops_.linear(for_qkv, l.qkv, qkv.columns(0, queries + 2 * kv), {});
        if (ends)
            ops_.rope(k, config_.kv_heads, rope_.cosine, rope_.sine, nullptr);
        else
            ops_.rope_store(qkv.columns(0, q), config_.heads, k, v, rope_.cosine, rope_.sine,
                            nullptr, kv_);
        expert_.set_prefix(index, k, v, plan.skip_expert);
        if (trace) {
            const std::string name = "out.kv." + std::to_string(i);
            trace->put_heads(name + ".key", k, config_.kv_heads);
            trace->put_heads(name + ".value", v, config_.kv_heads);
        }
        if (ends) continue;
        ops_.attention(qkv.columns(0, q), kv_, shape, attended);
        ops_.linear(attended, l.out, x, add);
        const Mat for_mlp = ops_.operand(normed, l.gate_up);
        ops_.rms_norm(x, l.norm2, config_.rms_eps, for_mlp);
        ops_.linear(for_mlp, l.gate_up, hidden, {});
        ops_.linear(hidden, l.down, x, add);
        if (trace) trace->put("mid.prefix_layer" + std::to_string(i), x);
    }
}

}  // namespace smolvla

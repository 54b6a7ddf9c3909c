#include "bindings/engine_arguments.h"

#include "bindings/entries.h"

namespace smolvla::bindings {
namespace {

// rtc: {"prev", "inference_delay", "execution_horizon", "max_guidance_weight", "schedule"}
void guide(FlowArguments& arguments, const py::object& rtc) {
    const Source source{ErrorKind::input, "rtc"};
    const py::dict d = dict_of(rtc, source);
    Guidance& g = arguments.flow.guidance;
    take(d, "prev", arguments.previous, source);
    g.previous = data_of<float>(arguments.previous, "prev_chunk_left_over", {-1, -1});
    g.rows = dim(arguments.previous, 0);
    g.dims = dim(arguments.previous, 1);
    take(d, "inference_delay", g.inference_delay, source);
    take(d, "execution_horizon", g.execution_horizon, source);
    take(d, "max_guidance_weight", g.max_weight, source);
    std::string schedule;
    take(d, "schedule", schedule, source);
    if (schedule == "LINEAR")
        g.schedule = Guidance::Schedule::linear;
    else if (schedule == "EXP")
        g.schedule = Guidance::Schedule::exp;
    else if (schedule == "ONES")
        g.schedule = Guidance::Schedule::ones;
    else if (schedule == "ZEROS")
        g.schedule = Guidance::Schedule::zeros;
    else
        fail(ErrorKind::input, "rtc: expected schedule LINEAR, EXP, ONES or ZEROS, got %s",
             schedule.c_str());
}

}  // namespace

ModelConfig config_of(const py::dict& d) {
    const Source source{ErrorKind::checkpoint, "the model configuration"};
    ModelConfig c{};
#define TAKE(field) take(d, #field, c.field, source)
    TAKE(vision_width), TAKE(vision_mlp), TAKE(vision_heads), TAKE(vision_layers);
    TAKE(patch_size), TAKE(image_size), TAKE(vision_eps), TAKE(scale_factor);
    TAKE(text_width), TAKE(text_mlp), TAKE(heads), TAKE(kv_heads), TAKE(head_dim);
    TAKE(text_layers), TAKE(vocab), TAKE(rms_eps);
    TAKE(expert_width), TAKE(expert_mlp), TAKE(expert_layers);
    TAKE(cross_attention), TAKE(self_attn_every_n), TAKE(rope_theta);
    TAKE(max_cameras), TAKE(tokenizer_max_length);
    TAKE(add_image_special_tokens), TAKE(fake_token_id), TAKE(global_token_id);
    TAKE(chunk_size), TAKE(num_steps), TAKE(min_period), TAKE(max_period);
    TAKE(max_state_dim), TAKE(max_action_dim), TAKE(state_dim), TAKE(action_dim);
    TAKE(adapt_to_pi_aloha);
#undef TAKE
    if (d.contains("resize") && !d["resize"].is_none()) {
        std::vector<int> size;
        take(d, "resize", size, source);
        if (size.size() != 2)
            fail(ErrorKind::checkpoint, "resize: expected a width and a height, got %zu numbers",
                 size.size());
        c.resize_width = size[0];
        c.resize_height = size[1];
    }
    c.check();
    return c;
}

Statistics statistics_of(const py::dict& stats, const char* feature, int dims) {
    Statistics s;
    if (!stats.contains(feature)) return s;
    const std::string name = std::string("statistics of ") + feature;
    const Source source{ErrorKind::checkpoint, name.c_str()};
    const py::dict d = dict_of(stats[feature], source);
    std::string mode;
    take(d, "mode", mode, source);
    if (mode == "IDENTITY") return s;
    if (mode != "MEAN_STD" && mode != "RANGE")
        fail(ErrorKind::checkpoint, "%s: expected mode IDENTITY, MEAN_STD or RANGE, got %s",
             source.name, mode.c_str());
    s.mode = mode == "RANGE" ? Statistics::Mode::range : Statistics::Mode::mean_std;
    const auto vector = [&](const char* key, std::vector<float>& values) {
        py::object array;
        take(d, key, array, source);
        const float* from = data_of<float>(array, name.c_str(), {dims});
        values.assign(from, from + dims);
    };
    vector("a", s.a);
    vector("b", s.b);
    if (d.contains("eps")) take(d, "eps", s.eps, source);
    if (d.contains("eps_in_range")) take(d, "eps_in_range", s.eps_in_range, source);
    return s;
}

std::vector<int> token_ids(const ModelConfig& c, const py::object& tokens, const py::object& mask) {
    const int64_t* ids = data_of<int64_t>(tokens, "tokens", {-1});
    const int count = dim(tokens, 0);
    const uint8_t* valid = mask.is_none() ? nullptr : mask_of(mask, "token_mask", count);
    std::vector<int> out;
    for (int i = 0; i < count; ++i) {
        if (valid && !valid[i]) continue;
        if (ids[i] < 0 || ids[i] >= c.vocab)
            fail(ErrorKind::input, "token %lld is outside the vocabulary of %d",
                 static_cast<long long>(ids[i]), c.vocab);
        if (static_cast<int>(out.size()) == c.max_prefix())
            fail(ErrorKind::input, "tokens: expected at most %d valid ids, got more",
                 c.max_prefix());
        out.push_back(static_cast<int>(ids[i]));
    }
    return out;
}

FlowArguments::FlowArguments(const Engine& engine, const py::object& noise, const py::dict& plan,
                             const py::object& rtc, const py::object& rest_of_chunk)
    : rest(rest_of_chunk) {
    const ModelConfig& c = engine.config();
    flow.plan = plan_of(c, plan);
    const int horizon = flow.plan.rows;
    flow.noise = data_of<float>(noise, "noise", {-1, c.max_action_dim});
    if (dim(noise, 0) < horizon)
        fail(ErrorKind::input, "noise: expected at least %d rows (the horizon), got %d", horizon,
             dim(noise, 0));
    if (!rtc.is_none()) guide(*this, rtc);
    if (!rest.is_none()) {
        flow.rest.values = data_of<float>(rest, "prev_chunk_left_over", {-1, -1});
        flow.rest.rows = dim(rest, 0);
        flow.rest.dims = dim(rest, 1);
        if (flow.rest.dims < 1 || flow.rest.dims > c.max_action_dim)
            fail(ErrorKind::input, "prev_chunk_left_over: expected 1 to %d columns, got %d",
                 c.max_action_dim, flow.rest.dims);
    }
    engine.check_flow(flow);  // before an array of `horizon` rows is made
}

SampleArguments::SampleArguments(const Engine& engine, const py::object& pixels,
                                 const py::object& camera_mask, const py::object& tokens,
                                 const py::object& token_mask, const py::object& state)
    : ids(token_ids(engine.config(), tokens, token_mask)) {
    model.pixels = data_of<float>(pixels, "pixels", {-1, 3, -1, -1});
    model.cameras = dim(pixels, 0);
    model.height = dim(pixels, 2);
    model.width = dim(pixels, 3);
    model.camera_mask = mask_of(camera_mask, "camera_mask", model.cameras);
    model.tokens = ids.data();
    model.token_count = static_cast<int>(ids.size());
    model.state = data_of<float>(state, "state", {engine.config().max_state_dim});
}

}  // namespace smolvla::bindings

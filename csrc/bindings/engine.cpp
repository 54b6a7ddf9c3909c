// _core.Engine: checks arrays, releases the GIL, nothing else.
#include "bindings/engine.h"

#include <pybind11/stl.h>

#include "model/engine.h"

namespace smolvla::bindings {
namespace {

template <class T>
void take(const py::dict& config, const char* name, T& field) {
    if (!config.contains(name))
        fail(ErrorKind::checkpoint, "the model configuration lacks %s", name);
    try {
        field = config[name].cast<T>();
    } catch (const py::cast_error&) {
        fail(ErrorKind::checkpoint, "the model configuration's %s = %s has a wrong type", name,
             py::str(config[name]).cast<std::string>().c_str());
    }
}

ModelConfig config_of(const py::dict& d) {
    ModelConfig c{};
#define TAKE(field) take(d, #field, c.field)
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
    if (!d.contains("resize") || d["resize"].is_none()) return c;
    const auto size = d["resize"].cast<std::vector<int>>();
    if (size.size() != 2) fail(ErrorKind::checkpoint, "resize needs a width and a height");
    c.resize_width = size[0];
    c.resize_height = size[1];
    return c;
}

Statistics statistics_of(const py::dict& stats, const char* feature, int dims) {
    Statistics s;
    if (!stats.contains(feature)) return s;
    const py::dict d = stats[feature];
    const std::string mode = d["mode"].cast<std::string>();
    if (mode == "IDENTITY") return s;
    if (mode != "MEAN_STD" && mode != "RANGE")
        fail(ErrorKind::checkpoint, "%s: unknown normalisation mode %s", feature, mode.c_str());
    s.mode = mode == "RANGE" ? Statistics::Mode::range : Statistics::Mode::mean_std;
    const float* a = data_of<float>(d["a"], "statistics a", {dims});
    const float* b = data_of<float>(d["b"], "statistics b", {dims});
    s.a.assign(a, a + dims);
    s.b.assign(b, b + dims);
    if (d.contains("eps")) s.eps = d["eps"].cast<float>();
    if (d.contains("eps_in_range")) s.eps_in_range = d["eps_in_range"].cast<bool>();
    return s;
}

using TensorTuple =
    std::tuple<std::string, std::string, std::vector<int64_t>, std::string, uint64_t, uint64_t>;

std::unique_ptr<Engine> make_engine(const py::dict& config, const std::vector<TensorTuple>& tensors,
                                    const py::dict& stats, int threads, const std::string& isa) {
    const ModelConfig c = config_of(config);
    const Statistics state = statistics_of(stats, "state", c.state_dim);
    const Statistics action = statistics_of(stats, "action", c.action_dim);
    std::vector<TensorEntry> entries;
    for (const auto& [name, dtype, shape, path, offset, bytes] : tensors)
        entries.push_back({name, parse_dtype(dtype), shape, path, offset, bytes});
    if (threads < 0 || threads > 256)
        fail(ErrorKind::backend, "threads must be 0 (automatic) to 256, got %d", threads);
    std::unique_ptr<Engine> engine;
    {
        py::gil_scoped_release release;
        engine = std::make_unique<Engine>(c, state, action, entries, threads, isa);
    }
    engine->set_interrupt_check([] {
        py::gil_scoped_acquire acquire;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    });
    return engine;
}

// Valid token ids as int32.
std::vector<int> token_ids(const py::object& tokens, const py::object& mask) {
    const int64_t* ids = data_of<int64_t>(tokens, "tokens", {-1});
    const py::ssize_t count = dim(tokens, 0);
    const bool* valid = mask.is_none() ? nullptr : data_of<bool>(mask, "token_mask", {count});
    std::vector<int> out;
    for (py::ssize_t i = 0; i < count; ++i) {
        if (valid && !valid[i]) continue;
        if (ids[i] < 0 || ids[i] > INT32_MAX)
            fail(ErrorKind::input, "token id %lld is out of range", static_cast<long long>(ids[i]));
        out.push_back(static_cast<int>(ids[i]));
    }
    return out;
}

struct FlowArguments {
    FlowInput flow;

    FlowArguments(const Engine& engine, const py::object& noise, int steps, int horizon,
                  const py::object& rtc) {
        const ModelConfig& c = engine.config();
        flow.rows = horizon;
        flow.steps = steps;
        flow.noise = data_of<float>(noise, "noise", {-1, c.max_action_dim});
        if (dim(noise, 0) < horizon)
            fail(ErrorKind::input, "noise: expected at least %d rows (the horizon), got %d",
                 horizon, static_cast<int>(dim(noise, 0)));
        if (rtc.is_none()) return;
        const py::dict d = rtc.cast<py::dict>();
        Guidance& g = flow.guidance;
        g.previous = data_of<float>(d["prev"], "prev_chunk_left_over", {-1, -1});
        g.rows = static_cast<int>(dim(d["prev"], 0));
        g.dims = static_cast<int>(dim(d["prev"], 1));
        g.inference_delay = d["inference_delay"].cast<int>();
        g.execution_horizon = d["execution_horizon"].cast<int>();
        g.max_weight = d["max_guidance_weight"].cast<float>();
        const std::string schedule = d["schedule"].cast<std::string>();
        if (schedule == "LINEAR")
            g.schedule = Guidance::Schedule::linear;
        else if (schedule == "EXP")
            g.schedule = Guidance::Schedule::exp;
        else if (schedule == "ONES")
            g.schedule = Guidance::Schedule::ones;
        else if (schedule == "ZEROS")
            g.schedule = Guidance::Schedule::zeros;
        else
            fail(ErrorKind::input, "RTC schedule %s is not LINEAR, EXP, ONES or ZEROS",
                 schedule.c_str());
    }
};

struct SampleArguments {
    std::vector<int> ids;
    ModelInput model;

    SampleArguments(const Engine& engine, const py::object& pixels, const py::object& camera_mask,
                    const py::object& tokens, const py::object& token_mask, const py::object& state)
        : ids(token_ids(tokens, token_mask)) {
        model.pixels = data_of<float>(pixels, "pixels", {-1, 3, -1, -1});
        model.cameras = static_cast<int>(dim(pixels, 0));
        model.height = static_cast<int>(dim(pixels, 2));
        model.width = static_cast<int>(dim(pixels, 3));
        model.camera_mask = data_of<bool>(camera_mask, "camera_mask", {model.cameras});
        model.tokens = ids.data();
        model.token_count = static_cast<int>(ids.size());
        model.state = data_of<float>(state, "state", {engine.config().max_state_dim});
    }
};

py::array_t<float> sample_actions(Engine& e, const py::object& pixels,
                                  const py::object& camera_mask, const py::object& tokens,
                                  const py::object& token_mask, const py::object& state,
                                  const py::object& noise, int steps, int horizon,
                                  const py::object& rtc) {
    const SampleArguments in(e, pixels, camera_mask, tokens, token_mask, state);
    const FlowArguments flow(e, noise, steps, horizon, rtc);
    py::array_t<float> out({horizon, e.config().max_action_dim});
    float* to = out.mutable_data();
    py::gil_scoped_release release;
    e.sample_actions(in.model, flow.flow, to, nullptr);
    return out;
}

py::dict trace(Engine& e, const py::object& pixels, const py::object& camera_mask,
               const py::object& tokens, const py::object& token_mask, const py::object& state,
               const py::object& noise, int steps, int horizon, const py::object& rtc) {
    const SampleArguments in(e, pixels, camera_mask, tokens, token_mask, state);
    const FlowArguments flow(e, noise, steps, horizon, rtc);
    std::vector<float> out(static_cast<size_t>(std::max(horizon, 0)) * e.config().max_action_dim);
    Trace record;
    {
        py::gil_scoped_release release;
        e.sample_actions(in.model, flow.flow, out.data(), &record);
    }
    py::dict result;
    for (const auto& [name, entry] : record.entries) {
        py::array_t<float> a(std::vector<py::ssize_t>(entry.shape.begin(), entry.shape.end()));
        std::copy(entry.values.begin(), entry.values.end(), a.mutable_data());
        result[py::str(name)] = a;
    }
    return result;
}

py::array_t<float> encode_images(Engine& e, const py::object& pixels) {
    const float* from = data_of<float>(pixels, "pixels", {-1, 3, -1, -1});
    const int cameras = static_cast<int>(dim(pixels, 0));
    const int height = static_cast<int>(dim(pixels, 2)), width = static_cast<int>(dim(pixels, 3));
    py::array_t<float> out({cameras, e.image_tokens(height, width), e.config().text_width});
    float* to = out.mutable_data();
    py::gil_scoped_release release;
    e.encode_images(from, cameras, height, width, to);
    return out;
}

int prefill(Engine& e, const py::object& image_tokens, const py::object& camera_mask,
            const py::object& tokens, const py::object& token_mask, const py::object& state) {
    const float* images =
        data_of<float>(image_tokens, "image_tokens", {-1, -1, e.config().text_width});
    const int cameras = static_cast<int>(dim(image_tokens, 0));
    const int per_camera = static_cast<int>(dim(image_tokens, 1));
    const bool* mask = data_of<bool>(camera_mask, "camera_mask", {cameras});
    const std::vector<int> ids = token_ids(tokens, token_mask);
    const float* s = data_of<float>(state, "state", {e.config().max_state_dim});
    py::gil_scoped_release release;
    return e.prefill(images, cameras, per_camera, mask, ids.data(), static_cast<int>(ids.size()),
                     s);
}

py::array_t<float> denoise(Engine& e, const py::object& noise, int steps, int horizon,
                           const py::object& rtc) {
    const FlowArguments flow(e, noise, steps, horizon, rtc);
    py::array_t<float> out({horizon, e.config().max_action_dim});
    float* to = out.mutable_data();
    py::gil_scoped_release release;
    e.denoise(flow.flow, to);
    return out;
}

py::dict predict(Engine& e, const std::vector<py::object>& frames, const py::object& tokens,
                 const py::object& state, const py::object& noise, int steps, int horizon,
                 const py::object& rtc, bool state_is_normalized) {
    const ModelConfig& c = e.config();
    std::vector<Frame> views;
    for (const py::object& f : frames) views.push_back(frame_of(f, "frame"));
    const std::vector<int> ids = token_ids(tokens, py::none());
    const float* s = data_of<float>(state, "state", {c.state_dim});
    const FlowArguments flow(e, noise, steps, horizon, rtc);
    py::array_t<float> normalized({horizon, c.action_dim}), actions({horizon, c.action_dim});
    float *n = normalized.mutable_data(), *a = actions.mutable_data();
    Timings t;
    {
        py::gil_scoped_release release;
        t = e.predict(views, ids.data(), static_cast<int>(ids.size()), s, state_is_normalized,
                      flow.flow, n, a);
    }
    py::dict times;
    times["preprocess"] = t.preprocess;
    times["vision"] = t.vision;
    times["prefix"] = t.prefix;
    times["flow"] = t.flow;
    times["total"] = t.total;
    py::dict result;
    result["normalized"] = normalized;
    result["actions"] = actions;
    result["timings"] = times;
    return result;
}

py::dict info(const Engine& e) {
    const BackendInfo i = e.info();
    py::dict d;
    d["isa"] = i.isa;
    d["threads"] = i.threads;
    d["weights_bytes"] = i.weight_bytes;
    d["arena_bytes"] = i.buffer_bytes;
    d["kernels"] = i.kernels;
    return d;
}

}  // namespace

Frame frame_of(const py::object& frame, const char* name) {
    if (frame.is_none()) return {};
    const bool is_u8 = py::isinstance<py::array_t<uint8_t>>(frame);
    const void* data = is_u8 ? static_cast<const void*>(data_of<uint8_t>(frame, name, {-1, -1, 3}))
                             : data_of<float>(frame, name, {-1, -1, 3});
    const py::ssize_t height = dim(frame, 0), width = dim(frame, 1);
    if (height < 1 || width < 1 || height > 16384 || width > 16384)
        fail(ErrorKind::input, "%s: a frame of %d x %d pixels is outside 1..16384", name,
             static_cast<int>(width), static_cast<int>(height));
    return {data, is_u8, static_cast<int>(height), static_cast<int>(width)};
}

void bind_engine(py::module_& m) {
    using py::arg;
    py::class_<Engine>(m, "Engine")
        .def(py::init(&make_engine), arg("config"), arg("tensors"), arg("stats"),
             arg("threads") = 0, arg("isa") = "")
        .def("encode_images", &encode_images, arg("pixels"))
        .def("prefill", &prefill, arg("image_tokens"), arg("camera_mask"), arg("tokens"),
             arg("token_mask"), arg("state"))
        .def("denoise", &denoise, arg("noise"), arg("steps"), arg("horizon"),
             arg("rtc") = py::none())
        .def("sample_actions", &sample_actions, arg("pixels"), arg("camera_mask"), arg("tokens"),
             arg("token_mask"), arg("state"), arg("noise"), arg("steps"), arg("horizon"),
             arg("rtc") = py::none())
        .def("trace", &trace, arg("pixels"), arg("camera_mask"), arg("tokens"), arg("token_mask"),
             arg("state"), arg("noise"), arg("steps"), arg("horizon"), arg("rtc") = py::none())
        .def("predict", &predict, arg("frames"), arg("tokens"), arg("state"), arg("noise"),
             arg("steps"), arg("horizon"), arg("rtc") = py::none(),
             arg("state_is_normalized") = false)
        .def("info", &info);
}

}  // namespace smolvla::bindings

// _core.Engine: checks arrays, releases the GIL, nothing else.
#include "bindings/engine.h"

#include <pybind11/stl.h>

#include "bindings/gil.h"
#include "bindings/made.h"
#include "model/engine.h"
#include "runtime/threads.h"

namespace smolvla::bindings {
namespace {

struct BoundEngine : MadeByInit, Engine {
    using Engine::Engine;
};

// What the entries of a dict are part of, for errors.
struct Source {
    ErrorKind kind;
    const char* name;
};

py::dict dict_of(const py::object& object, const Source& source) {
    if (!py::isinstance<py::dict>(object))
        fail(source.kind, "%s: expected a dict, got %s", source.name,
             py::str(py::type::of(object)).cast<std::string>().c_str());
    return py::reinterpret_borrow<py::dict>(object);
}

template <class T>
void take(const py::dict& dict, const char* name, T& field, const Source& source) {
    if (!dict.contains(name)) fail(source.kind, "%s lacks %s", source.name, name);
    try {
        field = dict[name].cast<T>();
    } catch (const py::cast_error&) {
        fail(source.kind, "%s: %s = %s has a wrong type", source.name, name,
             py::str(dict[name]).cast<std::string>().c_str());
    }
}

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

using TensorTuple =
    std::tuple<std::string, std::string, std::vector<int64_t>, std::string, uint64_t, uint64_t>;

std::unique_ptr<BoundEngine> make_engine(const py::dict& config,
                                         const std::vector<TensorTuple>& tensors,
                                         const py::dict& stats, int threads, const std::string& isa,
                                         const std::string& compute, const py::object& packed) {
    const ModelConfig c = config_of(config);
    const Statistics state = statistics_of(stats, "state", c.state_dim);
    const Statistics action = statistics_of(stats, "action", c.action_dim);
    std::vector<TensorEntry> entries;
    for (const auto& [name, dtype, shape, path, offset, bytes] : tensors)
        entries.push_back({name, parse_dtype(dtype), shape, path, offset, bytes});
    if (threads < 0 || threads > kMaxThreads)
        fail(ErrorKind::backend, "threads must be 0 (automatic) to %d, got %d", kMaxThreads,
             threads);
    const Compute precision = parse_compute(compute);
    const std::shared_ptr<const PackedImage> image = image_of(packed);
    std::unique_ptr<BoundEngine> engine;
    {
        GilRelease release;
        engine = make<BoundEngine>(c, state, action, entries, threads, isa, precision, image);
    }
    engine->set_interrupt_check(check_signals);
    return engine;
}

// Valid token ids as int32.
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

struct FlowArguments {
    FlowInput flow;
    py::object previous;  // keeps the array alive while the caller's dict is out of our hands

    FlowArguments(const Engine& engine, const py::object& noise, int steps, int horizon,
                  const py::object& rtc) {
        const ModelConfig& c = engine.config();
        flow.rows = horizon;
        flow.steps = steps;
        flow.noise = data_of<float>(noise, "noise", {-1, c.max_action_dim});
        if (dim(noise, 0) < horizon)
            fail(ErrorKind::input, "noise: expected at least %d rows (the horizon), got %d",
                 horizon, dim(noise, 0));
        if (!rtc.is_none()) guide({ErrorKind::input, "rtc"}, rtc);
        engine.check_flow(flow);  // before an array of `horizon` rows is made
    }

private:
    void guide(const Source& source, const py::object& rtc) {
        const py::dict d = dict_of(rtc, source);
        Guidance& g = flow.guidance;
        take(d, "prev", previous, source);
        g.previous = data_of<float>(previous, "prev_chunk_left_over", {-1, -1});
        g.rows = dim(previous, 0);
        g.dims = dim(previous, 1);
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
};

struct SampleArguments {
    std::vector<int> ids;
    ModelInput model;

    SampleArguments(const Engine& engine, const py::object& pixels, const py::object& camera_mask,
                    const py::object& tokens, const py::object& token_mask, const py::object& state)
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
};

py::array_t<float> sample_actions(BoundEngine& e, const py::object& pixels,
                                  const py::object& camera_mask, const py::object& tokens,
                                  const py::object& token_mask, const py::object& state,
                                  const py::object& noise, int steps, int horizon,
                                  const py::object& rtc) {
    const SampleArguments in(e, pixels, camera_mask, tokens, token_mask, state);
    const FlowArguments flow(e, noise, steps, horizon, rtc);
    py::array_t<float> out({horizon, e.config().max_action_dim});
    float* to = out.mutable_data();
    GilRelease release;
    e.sample_actions(in.model, flow.flow, to, nullptr);
    return out;
}

py::dict trace(BoundEngine& e, const py::object& pixels, const py::object& camera_mask,
               const py::object& tokens, const py::object& token_mask, const py::object& state,
               const py::object& noise, int steps, int horizon, const py::object& rtc) {
    const SampleArguments in(e, pixels, camera_mask, tokens, token_mask, state);
    const FlowArguments flow(e, noise, steps, horizon, rtc);
    std::vector<float> out(static_cast<size_t>(horizon) * e.config().max_action_dim);
    Trace record;
    {
        GilRelease release;
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

py::array_t<float> encode_images(BoundEngine& e, const py::object& pixels) {
    const float* from = data_of<float>(pixels, "pixels", {-1, 3, -1, -1});
    const int cameras = dim(pixels, 0), height = dim(pixels, 2), width = dim(pixels, 3);
    py::array_t<float> out({cameras, e.image_tokens(height, width), e.config().text_width});
    float* to = out.mutable_data();
    GilRelease release;
    e.encode_images(from, cameras, height, width, to);
    return out;
}

int prefill(BoundEngine& e, const py::object& image_tokens, const py::object& camera_mask,
            const py::object& tokens, const py::object& token_mask, const py::object& state) {
    const float* images =
        data_of<float>(image_tokens, "image_tokens", {-1, -1, e.config().text_width});
    const int cameras = dim(image_tokens, 0), per_camera = dim(image_tokens, 1);
    const uint8_t* mask = mask_of(camera_mask, "camera_mask", cameras);
    const std::vector<int> ids = token_ids(e.config(), tokens, token_mask);
    const float* s = data_of<float>(state, "state", {e.config().max_state_dim});
    GilRelease release;
    return e.prefill(images, cameras, per_camera, mask, ids.data(), static_cast<int>(ids.size()),
                     s);
}

py::array_t<float> denoise(BoundEngine& e, const py::object& noise, int steps, int horizon,
                           const py::object& rtc) {
    const FlowArguments flow(e, noise, steps, horizon, rtc);
    py::array_t<float> out({horizon, e.config().max_action_dim});
    float* to = out.mutable_data();
    GilRelease release;
    e.denoise(flow.flow, to);
    return out;
}

py::dict predict(BoundEngine& e, const std::vector<py::object>& frames, const py::object& tokens,
                 const py::object& state, const py::object& noise, int steps, int horizon,
                 const py::object& rtc, bool state_is_normalized) {
    const ModelConfig& c = e.config();
    std::vector<Frame> views;
    for (const py::object& f : frames) views.push_back(frame_of(f, "frame"));
    const std::vector<int> ids = token_ids(c, tokens, py::none());
    const float* s = data_of<float>(state, "state", {c.state_dim});
    const FlowArguments flow(e, noise, steps, horizon, rtc);
    py::array_t<float> normalized({horizon, c.action_dim}), actions({horizon, c.action_dim});
    float *n = normalized.mutable_data(), *a = actions.mutable_data();
    Timings t;
    {
        GilRelease release;
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

void write_packed(BoundEngine& e, const std::string& path, const std::string& bundle,
                  const std::string& config) {
    GilRelease release;
    e.write_packed(path, bundle, config);
}

py::dict info(const BoundEngine& e) {
    const BackendInfo i = e.info();
    py::dict d;
    d["isa"] = i.isa;
    d["compute"] = compute_name(i.compute);
    d["threads"] = i.threads;
    d["weights_bytes"] = i.weight_bytes;
    d["arena_bytes"] = i.buffer_bytes;
    d["kernels"] = i.kernels;
    return d;
}

void start_recording(BoundEngine& e, size_t capacity) {
    GilRelease release;
    e.start_recording(capacity);
}

// {"ops": [...], "stages": [...], "overwritten": n}; smolvla_edge/profile/records.py reads it.
py::dict take_records(BoundEngine& e) {
    size_t overwritten = 0;
    std::vector<TimedRecord> records;
    {
        GilRelease release;
        records = e.take_records(&overwritten);
    }
    py::list ops, stages;
    for (const TimedRecord& r : records) {
        py::dict d;
        d["kind"] = r.kind;
        d["start"] = r.start_ns;
        d["end"] = r.end_ns;
        if (r.stage) {
            d["index"] = r.index;
            stages.append(d);
            continue;
        }
        d["weight"] = r.weight;
        d["rows"] = r.rows;
        d["in"] = r.in;
        d["out"] = r.out;
        d["heads"] = r.heads;
        d["flops"] = r.flops;
        d["bytes"] = r.bytes;
        d["compute"] = compute_name(r.compute);
        ops.append(d);
    }
    py::dict result;
    result["ops"] = ops;
    result["stages"] = stages;
    result["overwritten"] = overwritten;
    return result;
}

}  // namespace

Frame frame_of(const py::object& frame, const char* name) {
    if (frame.is_none()) return {};
    const bool is_u8 = py::isinstance<py::array_t<uint8_t>>(frame);
    const void* data = is_u8 ? static_cast<const void*>(data_of<uint8_t>(frame, name, {-1, -1, 3}))
                             : data_of<float>(frame, name, {-1, -1, 3});
    const int height = dim(frame, 0), width = dim(frame, 1);
    if (height < 1 || width < 1 || height > 16384 || width > 16384)
        fail(ErrorKind::input, "%s: a frame of %d x %d pixels is outside 1..16384", name, width,
             height);
    return {data, is_u8, height, width};
}

void bind_engine(py::module_& m) {
    using py::arg;
    m.def(
        "buffer_bound",
        [](const py::dict& config, int threads) {
            if (threads < 1 || threads > kMaxThreads)
                fail(ErrorKind::input, "threads: expected 1 to %d, got %d", kMaxThreads, threads);
            return buffer_bytes(config_of(config), threads);
        },
        arg("config"), arg("threads"));
    py::class_<BoundEngine>(m, "Engine")
        .def(py::init(&make_engine), arg("config"), arg("tensors"), arg("stats"),
             arg("threads") = 0, arg("isa") = "", arg("compute") = "float32",
             arg("packed") = py::none())
        .def("write_packed", &write_packed, arg("path"), arg("bundle"), arg("config"))
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
        .def("info", &info)
        .def("start_recording", &start_recording, arg("capacity"))
        .def("take_records", &take_records);
}

}  // namespace smolvla::bindings

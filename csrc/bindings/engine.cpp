// _core.Engine: checks arrays, releases the GIL, nothing else.
#include "bindings/engine.h"

#include <pybind11/stl.h>

#include "bindings/cuda.h"
#include "bindings/engine_arguments.h"
#include "bindings/gil.h"
#include "bindings/made.h"
#include "model/engine.h"
#include "runtime/threads.h"

namespace smolvla::bindings {
namespace {

struct BoundEngine : MadeByInit, Engine {
    using Engine::Engine;
};

using TensorTuple =
    std::tuple<std::string, std::string, std::vector<int64_t>, std::string, uint64_t, uint64_t>;

// What only the CPU's kernels take, by name.
void refuse_on_gpu(int threads, const std::string& isa, const py::object& packed) {
    const char* given = threads != 0        ? "threads"
                        : !isa.empty()      ? "isa"
                        : !packed.is_none() ? "packed"
                                            : nullptr;
    if (given)
        fail(ErrorKind::backend,
             "%s: expected none with device cuda, which computes on the GPU; leave it out, or use "
             "device cpu",
             given);
}

std::unique_ptr<BoundEngine> make_engine(const py::dict& config,
                                         const std::vector<TensorTuple>& tensors,
                                         const py::dict& stats, int threads, const std::string& isa,
                                         const std::string& compute, const py::object& packed,
                                         const std::string& device) {
    const ModelConfig c = config_of(config);
    const Statistics state = statistics_of(stats, "state", c.state_dim);
    const Statistics action = statistics_of(stats, "action", c.action_dim);
    std::vector<TensorEntry> entries;
    for (const auto& [name, dtype, shape, path, offset, bytes] : tensors)
        entries.push_back({name, parse_dtype(dtype), shape, path, offset, bytes});
    if (device != "cpu" && device != "cuda")
        fail(ErrorKind::backend, "device: expected cpu or cuda, got %s", device.c_str());
    if (device == "cuda") refuse_on_gpu(threads, isa, packed);
    if (threads < 0 || threads > kMaxThreads)
        fail(ErrorKind::backend, "threads must be 0 (automatic) to %d, got %d", kMaxThreads,
             threads);
    const Compute precision = parse_compute(compute);
    const std::shared_ptr<const PackedImage> image = image_of(packed);
    std::unique_ptr<BoundEngine> engine;
    {
        GilRelease release;
        if (device == "cuda")
            engine = make<BoundEngine>(c, state, action, entries, [precision](size_t bytes) {
                return make_gpu_backend(precision, bytes);
            });
        else
            engine = make<BoundEngine>(c, state, action, entries, threads, isa, precision, image);
    }
    engine->set_interrupt_check(check_signals);
    return engine;
}

py::array_t<float> sample_actions(BoundEngine& e, const py::object& pixels,
                                  const py::object& camera_mask, const py::object& tokens,
                                  const py::object& token_mask, const py::object& state,
                                  const py::object& noise, const py::dict& plan,
                                  const py::object& rtc, const py::object& rest) {
    const SampleArguments in(e, pixels, camera_mask, tokens, token_mask, state);
    const FlowArguments flow(e, noise, plan, rtc, rest);
    py::array_t<float> out({flow.flow.plan.rows, e.config().max_action_dim});
    float* to = out.mutable_data();
    GilRelease release;
    e.sample_actions(in.model, flow.flow, to, nullptr);
    return out;
}

py::dict trace(BoundEngine& e, const py::object& pixels, const py::object& camera_mask,
               const py::object& tokens, const py::object& token_mask, const py::object& state,
               const py::object& noise, const py::dict& plan, const py::object& rtc,
               const py::object& rest) {
    const SampleArguments in(e, pixels, camera_mask, tokens, token_mask, state);
    const FlowArguments flow(e, noise, plan, rtc, rest);
    std::vector<float> out(size_t(flow.flow.plan.rows) * e.config().max_action_dim);
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

py::array_t<float> encode_images(BoundEngine& e, const py::object& pixels, const py::dict& plan) {
    const LayerSet skip = plan_of(e.config(), plan).skip_vision;
    const float* from = data_of<float>(pixels, "pixels", {-1, 3, -1, -1});
    const int cameras = dim(pixels, 0), height = dim(pixels, 2), width = dim(pixels, 3);
    py::array_t<float> out({cameras, e.image_tokens(height, width), e.config().text_width});
    float* to = out.mutable_data();
    GilRelease release;
    e.encode_images(from, cameras, height, width, skip, to);
    return out;
}

int prefill(BoundEngine& e, const py::object& image_tokens, const py::object& camera_mask,
            const py::object& tokens, const py::object& token_mask, const py::object& state,
            const py::dict& plan) {
    const Plan p = plan_of(e.config(), plan);
    const float* images =
        data_of<float>(image_tokens, "image_tokens", {-1, -1, e.config().text_width});
    const int cameras = dim(image_tokens, 0), per_camera = dim(image_tokens, 1);
    const uint8_t* mask = mask_of(camera_mask, "camera_mask", cameras);
    const std::vector<int> ids = token_ids(e.config(), tokens, token_mask);
    const float* s = data_of<float>(state, "state", {e.config().max_state_dim});
    GilRelease release;
    return e.prefill(images, cameras, per_camera, mask, ids.data(), static_cast<int>(ids.size()), s,
                     p);
}

py::array_t<float> denoise(BoundEngine& e, const py::object& noise, const py::dict& plan,
                           const py::object& rtc, const py::object& rest) {
    const FlowArguments flow(e, noise, plan, rtc, rest);
    py::array_t<float> out({flow.flow.plan.rows, e.config().max_action_dim});
    float* to = out.mutable_data();
    GilRelease release;
    e.denoise(flow.flow, to);
    return out;
}

// None for a frame that was not cached.
py::object report_of(const CacheReport& r) {
    if (!r.used) return py::none();
    py::dict d;
    d["keyframe"] = r.keyframe;
    d["why"] = r.why ? py::object(py::str(r.why)) : py::none();
    d["dirty"] = r.dirty;
    d["oldest"] = r.oldest;
    d["drift"] = r.drift < 0 ? py::none() : py::object(py::float_(double{r.drift}));
    return d;
}

py::dict predict(BoundEngine& e, const std::vector<py::object>& frames, const py::object& tokens,
                 const py::object& state, const py::object& noise, const py::dict& plan,
                 const py::object& rtc, const py::object& rest, bool state_is_normalized,
                 const std::vector<int>& cached) {
    const ModelConfig& c = e.config();
    std::vector<Frame> views;
    for (const py::object& f : frames) views.push_back(frame_of(f, "frame"));
    const std::vector<int> ids = token_ids(c, tokens, py::none());
    const float* s = data_of<float>(state, "state", {c.state_dim});
    const FlowArguments flow(e, noise, plan, rtc, rest);
    const int rows = flow.flow.plan.rows;
    py::array_t<float> normalized({rows, c.action_dim}), actions({rows, c.action_dim});
    float *n = normalized.mutable_data(), *a = actions.mutable_data();
    Prediction made;
    {
        GilRelease release;
        made = e.predict(
            {views, ids.data(), static_cast<int>(ids.size()), s, state_is_normalized, cached},
            flow.flow, n, a);
    }
    const Timings& t = made.timings;
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
    result["evaluations"] = made.evaluations;
    py::list reports;
    for (size_t i = 0; i < views.size(); ++i) reports.append(report_of(made.cache[i]));
    result["cache"] = reports;
    return result;
}

// progress: called with (done, in all), or None.
void warm_up(BoundEngine& e, int height, int width, const py::dict& plan,
             const std::vector<int>& cached, const py::object& progress) {
    const WarmUp calls{height, width, plan_of(e.config(), plan), cached};
    const auto report = [&progress](int done, int all) {
        try {
            py::gil_scoped_acquire acquire;
            if (!progress.is_none()) progress(done, all);
        } catch (abi::__forced_unwind&) {
            sleep_until_exit();
        }
    };
    GilRelease release;
    e.warm_up(calls, report);
}

void write_packed(BoundEngine& e, const std::string& path, const std::string& bundle,
                  const std::string& config) {
    GilRelease release;
    e.write_packed(path, bundle, config);
}

py::dict info(const BoundEngine& e) {
    const BackendInfo i = e.info();
    py::dict d;
    if (i.gpu.sm == 0) {
        d["device"] = "cpu";
        d["isa"] = i.isa;
        d["threads"] = i.threads;
    } else {
        d["device"] = "cuda";
        d["device_name"] = i.gpu.name;
        d["sm"] = i.gpu.sm;
        d["memory_bytes"] = i.gpu.memory_bytes;
        d["pinned_bytes"] = i.gpu.pinned_bytes;
        d["graphs"] = i.gpu.graphs;
    }
    d["compute"] = compute_name(i.compute);
    d["weights_bytes"] = i.weight_bytes;
    d["arena_bytes"] = i.buffer_bytes;
    d["kernels"] = i.kernels;
    d["ready"] = e.ready();
    return d;
}

// How every linear layer is held and computed, in the order of loading.
py::list linears(const BoundEngine& e) {
    py::list all;
    for (const LinearInfo& i : e.linears()) {
        py::dict d;
        d["name"] = i.name;
        d["in"] = i.in;
        d["columns"] = i.columns;
        d["bits"] = i.bits;
        d["group"] = i.group;
        d["compute"] = i.compute;
        d["kernel"] = i.kernel;
        d["bytes"] = i.bytes;
        all.append(d);
    }
    return all;
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
        d["compute"] = r.compute;
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
             arg("packed") = py::none(), arg("device") = "cpu")
        .def("warm_up", &warm_up, arg("height"), arg("width"), arg("plan"),
             arg("cached") = std::vector<int>{}, arg("progress") = py::none())
        .def("write_packed", &write_packed, arg("path"), arg("bundle"), arg("config"))
        .def("encode_images", &encode_images, arg("pixels"), arg("plan"))
        .def("prefill", &prefill, arg("image_tokens"), arg("camera_mask"), arg("tokens"),
             arg("token_mask"), arg("state"), arg("plan"))
        .def("denoise", &denoise, arg("noise"), arg("plan"), arg("rtc") = py::none(),
             arg("rest") = py::none())
        .def("sample_actions", &sample_actions, arg("pixels"), arg("camera_mask"), arg("tokens"),
             arg("token_mask"), arg("state"), arg("noise"), arg("plan"), arg("rtc") = py::none(),
             arg("rest") = py::none())
        .def("trace", &trace, arg("pixels"), arg("camera_mask"), arg("tokens"), arg("token_mask"),
             arg("state"), arg("noise"), arg("plan"), arg("rtc") = py::none(),
             arg("rest") = py::none())
        .def("predict", &predict, arg("frames"), arg("tokens"), arg("state"), arg("noise"),
             arg("plan"), arg("rtc") = py::none(), arg("rest") = py::none(),
             arg("state_is_normalized") = false, arg("cached") = std::vector<int>{})
        .def("reset",
             [](BoundEngine& e) {
                 GilRelease release;
                 e.reset();
             })
        .def("info", &info)
        .def("linears", &linears)
        .def("start_recording", &start_recording, arg("capacity"))
        .def("take_records", &take_records);
}

}  // namespace smolvla::bindings

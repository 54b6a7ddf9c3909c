// A plan from Python.
#include "bindings/engine_arguments.h"
#include "bindings/entries.h"

namespace smolvla::bindings {
namespace {

LayerSet layers_of(const std::vector<int>& layers, const char* part) {
    LayerSet set = 0;
    for (const int layer : layers) {
        if (layer < 0 || layer >= kMaxLayers)
            fail(ErrorKind::input, "%s: layer %d is outside [0, %d)", part, layer, kMaxLayers);
        set |= LayerSet{1} << layer;
    }
    return set;
}

LayerSet take_layers(const py::dict& d, const char* name, const Source& source) {
    std::vector<int> layers;
    take(d, name, layers, source);
    return layers_of(layers, name);
}

}  // namespace

Plan plan_of(const ModelConfig& config, const py::dict& d) {
    const Source source{ErrorKind::input, "the plan"};
    Plan p;
    take(d, "rows", p.rows, source);
    take(d, "steps", p.steps, source);
    take(d, "ab2", p.ab2, source);
    take(d, "times", p.times, source);
    take(d, "warm_start", p.warm_start, source);
    take(d, "adaptive", p.adaptive, source);
    take(d, "high", p.high, source);
    take(d, "low", p.low, source);
    take(d, "stop", p.stop, source);
    p.skip_vision = take_layers(d, "skip_vision", source);
    p.skip_vlm = take_layers(d, "skip_vlm", source);
    p.skip_expert = take_layers(d, "skip_expert", source);
    take(d, "exit", p.exit, source);
    std::vector<std::vector<int>> reuse;
    take(d, "reuse", reuse, source);
    for (const std::vector<int>& layers : reuse) p.reuse.push_back(layers_of(layers, "reuse"));
    take(d, "caching", p.caching, source);
    take(d, "threshold", p.cache.threshold, source);
    take(d, "keyframe_every", p.cache.keyframe_every, source);
    take(d, "max_age", p.cache.max_age, source);
    take(d, "dilate", p.cache.dilate, source);
    take(d, "check", p.cache.check, source);
    take(d, "keep_padding", p.cache.keep_padding, source);
    take(d, "attended", p.cache.attended, source);
    check_plan(config, p);
    return p;
}

}  // namespace smolvla::bindings

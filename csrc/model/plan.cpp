#include "model/plan.h"

#include <cmath>

#include "model/config.h"
#include "runtime/error.h"

namespace smolvla {
namespace {

void check_layers(const char* part, LayerSet set, int layers) {
    for (int i = 0; i < kMaxLayers; ++i)
        if (has(set, i) && i >= layers)
            fail(ErrorKind::input, "%s: there are %d layers, the last one is %d, not %d", part,
                 layers, layers - 1, i);
}

void check_times(const Plan& plan) {
    if (plan.times.empty()) return;
    bool falling = plan.times.size() == size_t(plan.steps) + 1 && plan.times.front() == 1 &&
                   plan.times.back() == 0;
    for (size_t i = 1; falling && i < plan.times.size(); ++i)
        falling = plan.times[i] < plan.times[i - 1];  // nor NaN
    if (!falling)
        fail(ErrorKind::input, "schedule: expected %d times falling from 1 to 0", plan.steps + 1);
}

}  // namespace

void check_plan(const ModelConfig& c, const Plan& p) {
    if (p.rows < 1 || p.rows > c.chunk_size)
        fail(ErrorKind::input, "horizon %d is outside [1, %d]", p.rows, c.chunk_size);
    if (p.steps < 1 || p.steps > c.kMaxSteps)
        fail(ErrorKind::input, "%d denoise steps are outside [1, %d]", p.steps, c.kMaxSteps);
    check_times(p);
    check_layers("skip.vision", p.skip_vision, c.vision_layers);
    check_layers("skip.vlm", p.skip_vlm, c.text_layers);
    check_layers("skip.expert", p.skip_expert, c.expert_layers);
    if (p.exit < 0 || p.exit > c.text_layers || (p.exit && c.expert_layers > kMaxLayers))
        fail(ErrorKind::input, "exit %d: expected at most %d layers, of an expert of at most %d",
             p.exit, c.text_layers, kMaxLayers);
    if (!p.reuse.empty() && (p.reuse.size() != size_t(p.steps) || p.reuse[0] != 0))
        fail(ErrorKind::input, "skip.reuse: expected %d sets of layers, the first one empty",
             p.steps);
    for (const LayerSet set : p.reuse) check_layers("skip.reuse", set, c.expert_layers);
    if (!(p.warm_start >= 0 && p.warm_start < 1))
        fail(ErrorKind::input, "warm_start %g is outside (0, 1)", double{p.warm_start});
    if (p.adaptive && (p.ab2 || !p.times.empty() || p.stop >= 0 || !p.reuse.empty()))
        fail(ErrorKind::input,
             "adaptive chooses the steps itself: expected no solver, schedule, "
             "stop or skip.reuse beside it");
    const CacheRule& rule = p.cache;
    if (p.caching && !(rule.threshold >= 0 && rule.keyframe_every >= 1 && rule.max_age >= 1 &&
                       rule.dilate >= 0 && rule.check >= 0 && rule.attended >= 0))
        fail(ErrorKind::input,
             "cache: expected threshold, dilate, check and attended >= 0, keyframe_every "
             "and max_age >= 1");
    if (p.watches() && !c.has_cross_layers())
        fail(ErrorKind::input,
             "cache.attended: expected a model whose expert has cross-attention layers");
}

}  // namespace smolvla

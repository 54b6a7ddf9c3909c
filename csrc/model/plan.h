// What trades work for accuracy, as numbers; smolvla_edge/plan.py says what each field means.
#pragma once

#include <cstdint>
#include <vector>

namespace smolvla {

// Layers of one part, a bit each.
using LayerSet = uint64_t;
constexpr int kMaxLayers = 64;  // that can be named
constexpr bool has(LayerSet set, int layer) { return layer < kMaxLayers && (set >> layer & 1); }

// Reuse of visual tokens between frames; see model/token_cache.h.
struct CacheRule {
    float threshold = 0;
    int keyframe_every = 1, max_age = 1, dilate = 1, check = 1;
    bool keep_padding = false;
    int attended = 0;
    bool operator==(const CacheRule& o) const {
        return threshold == o.threshold && keyframe_every == o.keyframe_every &&
               max_age == o.max_age && dilate == o.dilate && check == o.check &&
               keep_padding == o.keep_padding && attended == o.attended;
    }
};

struct Plan {
    int rows = 0;               // the horizon
    int steps = 0;              // evaluations of the velocity
    bool ab2 = false;           // Adams-Bashforth of second order instead of Euler
    std::vector<double> times;  // steps + 1, from 1 to 0; empty: equal steps
    float warm_start = 0;       // where the flow begins with a rest of the last chunk; 0: at 1
    bool adaptive = false;      // the cosine of two velocities decides how many follow
    float high = 0, low = 0;
    float stop = -1;  // largest difference of two estimates that ends the flow; < 0: none does
    LayerSet skip_vision = 0, skip_vlm = 0, skip_expert = 0;
    // Layers of the language model that run, and of the expert beside them; 0: all.
    int exit = 0;
    std::vector<LayerSet> reuse;  // of every step; empty: none
    bool caching = false;
    CacheRule cache = {};

    // Whether the next call is to know what the expert looked at.
    bool watches() const { return caching && cache.attended > 0; }
};

struct ModelConfig;
// Raises an input error for what a model of this configuration cannot do.
void check_plan(const ModelConfig& config, const Plan& plan);

}  // namespace smolvla

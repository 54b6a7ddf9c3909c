// The whole policy without Python: frames, state and token ids in, robot-unit actions out.
// Everything it will ever need is allocated while it is built.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>

#include "model/flow.h"
#include "model/frame_cache.h"
#include "model/prefix.h"
#include "model/vision.h"
#include "ops/timed.h"

namespace smolvla {

struct Timings {  // milliseconds
    double preprocess = 0, vision = 0, prefix = 0, flow = 0, total = 0;
};

// What the model alone takes, in normalised space.
struct ModelInput {
    const float* pixels;  // [cameras, 3, height, width] in [-1, 1]
    int cameras, height, width;
    const uint8_t* camera_mask;  // [cameras]; 0: masked
    const int* tokens;           // valid ones only
    int token_count;
    const float* state;  // [max_state_dim]
};

// Upper bound of an engine's activations, keys and values, in bytes of address space: what it
// reserves. Pages that are never touched cost nothing, so that real use is a part of it.
size_t buffer_bytes(const ModelConfig& config, int threads);
// The same of what plans with a token cache keep, of all cameras.
size_t kept_bytes(const ModelConfig& config);

// What a call may be like; see Engine::warm_up.
struct WarmUp {
    int frame_height,
        frame_width;  // of the largest frame; of every one if the policy does not resize
    Plan plan;
    std::vector<int> cached = {};  // cameras whose tokens the plan keeps
};

// One observation, raw.
struct Observation {
    const std::vector<Frame>& frames;
    const int* tokens;
    int token_count;
    const float* state;  // [state_dim], raw unless state_is_normalized
    bool state_is_normalized;
    // Of each frame the camera whose tokens the plan's cache keeps, or -1; empty: of none.
    const std::vector<int>& cached;
};

constexpr int kMaxCameras = 64;  // of a call

struct Prediction {
    Timings timings;
    int evaluations = 0;             // of the velocity
    CacheReport cache[kMaxCameras];  // of each frame
};

using MakeBackend = std::function<std::unique_ptr<Backend>(size_t tensor_bytes)>;

class Engine {
public:
    Engine(const ModelConfig& config, const Statistics& state, const Statistics& action,
           const std::vector<TensorEntry>& tensors, int threads, const std::string& isa,
           Compute compute = Compute::float32, std::shared_ptr<const PackedImage> image = nullptr);
    // On the backend that `make` gives, which is told how many bytes the tensors have.
    Engine(const ModelConfig& config, const Statistics& state, const Statistics& action,
           const std::vector<TensorEntry>& tensors, const MakeBackend& make);

    // The packed cache of these weights; `bundle` and `config` name what they were made of.
    void write_packed(const std::string& path, const std::string& bundle,
                      const std::string& config);

    // Called between stages and steps; may throw to stop the call (Ctrl-C).
    void set_interrupt_check(std::function<void()> check) { check_ = std::move(check); }

    // Raises an input error for a plan or guidance outside what the model was built for.
    void check_flow(const FlowInput& flow) const;

    // --- seams -----------------------------------------------------------------------------------
    int image_tokens(int height, int width) const;
    void encode_images(const float* pixels, int cameras, int height, int width, LayerSet skip,
                       float* tokens);
    int prefill(const float* image_tokens, int cameras, int tokens_per_camera,
                const uint8_t* camera_mask, const int* tokens, int token_count, const float* state,
                const Plan& plan);
    int denoise(const FlowInput& flow, float* out);

    // --- the model alone: out [rows, max_action_dim] ---------------------------------------------
    // Returns how often the velocity was evaluated.
    int sample_actions(const ModelInput& input, const FlowInput& flow, float* out, Trace* trace);

    // --- the whole policy: normalized, actions [rows, action_dim] --------------------------------
    Prediction predict(const Observation& observation, const FlowInput& flow, float* normalized,
                       float* actions);
    // Forgets what is kept of earlier frames.
    void reset();

    // Makes everything that a call can need, so that none allocates or records after it: one call
    // on black frames, then every other stage recorded. `progress` gets (done, in all) and may
    // throw.
    void warm_up(const WarmUp& calls, const std::function<void(int, int)>& progress);
    // Whether warm_up has come to its end; from the beginning where there is nothing to make.
    bool ready() const { return ready_; }

    const ModelConfig& config() const { return config_; }
    BackendInfo info() const { return ops_->info(); }
    std::vector<LinearInfo> linears() const { return ops_->linears(); }

    // Every operation of what is computed between the two is written down; `predict` also marks its
    // stages "preprocess" and "vision" (a camera each), "prefix" and "flow". See ops/timed.h.
    void start_recording(size_t capacity);
    std::vector<TimedRecord> take_records(size_t* overwritten);

private:
    // One call's hold of the engine and of the backend's device.
    class Entered {
    public:
        explicit Entered(Engine& engine);
        ~Entered() { ops_.leave(); }
        Entered(const Entered&) = delete;
        Entered& operator=(const Entered&) = delete;

    private:
        const std::unique_lock<std::mutex> lock_;
        Backend& ops_;
    };
    Entered enter() { return Entered(*this); }
    void check_owner() const;
    // A frame's tokens; the moments 2 i + 1 and 2 i + 2 are after its letterbox and at the end.
    // With `cached` >= 0 they are kept, as that camera's, and `report` says how.
    Mat see(int camera, const Frame& frame, const FrameCache::Call& call, int cached,
            CacheReport* report);
    // Tells what is kept of each frame how much the flow looked at it.
    void attend(const Observation& observation, const Plan& plan, const Prediction& made);
    void read_looked_at();
    Timings timings(const std::vector<Frame>& frames, double total) const;
    int run_flow(const FlowInput& flow, int prefix_tokens, float* out, Trace* trace);
    void check_cameras(size_t count) const;
    void check_cached(const Observation& in) const;
    // An image without data is a masked camera.
    // Of each frame image_starts_[i] is the number of its first token.
    void fill_prefix(const Mat* images, int cameras, const int* tokens, int token_count,
                     const float* state);

    const ModelConfig config_;
    const Statistics state_statistics_, action_statistics_;
    TensorSource source_;
    std::unique_ptr<TimedBackend> ops_;
    std::unique_ptr<Vision> vision_;
    std::unique_ptr<Expert> expert_;
    std::unique_ptr<Prefix> prefix_;
    std::unique_ptr<Flow> flow_;
    std::unique_ptr<FrameCache> kept_;
    std::vector<Mat> image_tokens_;  // one buffer per camera
    float* pixels_;
    std::vector<float> state_, sampled_;
    std::vector<int> image_starts_;
    std::vector<float> looked_at_;  // [heads, prefix] of the expert's; then the first row, of all
    int prefix_tokens_ = 0;         // 0: nothing prefilled
    std::atomic<bool> ready_{false};
    std::function<void()> check_ = [] {};
    std::mutex mutex_;
    const pid_t owner_;
};

// LeRobot's conversions for ALOHA arms, on normalised values: flips joints 1, 2, 8, 9 and maps the
// grippers 6 and 13 between linear and angular positions.
void aloha_decode_state(float* state);
void aloha_encode_actions(float* actions);

}  // namespace smolvla

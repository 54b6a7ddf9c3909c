#include "model/engine.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>

#include "runtime/error.h"
#include "runtime/threads.h"

namespace smolvla {
namespace {

// Moments of a call (Backend::mark): the cameras have two each, after the beginning.
constexpr int kPrefixDone = 2 * kMaxCameras + 1, kFlowDone = kPrefixDone + 1;
static_assert(kFlowDone < Backend::kMoments, "the moments of a call");

double now_ms() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// Everything that make_buffer and make_kv will be asked for.
size_t buffer_bytes(const ModelConfig& c, int threads) {
    const size_t patches = static_cast<size_t>(c.max_patches());
    const size_t prefix = static_cast<size_t>(c.max_prefix()), chunk = c.chunk_size;
    const size_t kv_pad = c.head_dim < 32 ? 32 / c.head_dim + 1 : 2;
    const size_t vw = c.vision_width, kv = c.kv_width(), q = c.q_width();
    const size_t vision =
        patches * (3 * c.patch_size * c.patch_size + 15 * vw * kv_pad + c.vision_mlp + 4 * 128) +
        size_t(2) * c.max_image_tokens() * (c.text_width + 32);
    const size_t text = (prefix + 64) * (4 * c.text_width + 2 * q + 4 * kv + c.text_mlp +
                                         2 * kv * kv_pad + 2 * c.head_dim + 512);
    const size_t expert =
        (prefix + chunk + 64) * (2 * kv * kv_pad * c.expert_layers + 256) +
        chunk * (4 * c.expert_width + 2 * q + 2 * kv + c.expert_mlp + 4 * c.max_action_dim + 512);
    const size_t scores = 4 * static_cast<size_t>(threads) * 64 * (patches + prefix + chunk + 64);
    const size_t images =
        static_cast<size_t>(c.max_cameras) * c.max_image_tokens() * (c.text_width + 32) +
        3 * static_cast<size_t>(c.image_size) * c.image_size * 4;
    const size_t vectors = static_cast<size_t>(c.kMaxSteps) * (c.expert_width + 128);
    const size_t updates = static_cast<size_t>(c.expert_layers) * chunk * (c.expert_width + 32);
    return (vision + text + expert + scores + images + vectors + updates) * sizeof(float) * 3 / 2 +
           (size_t{64} << 20);
}

size_t kept_bytes(const ModelConfig& c) {
    const size_t patches = static_cast<size_t>(c.max_patches()), width = c.vision_width;
    const size_t heads = static_cast<size_t>(c.vision_heads), edge = c.image_size + c.patch_size;
    // A head of keys or values fills whole panels of 32.
    const size_t head = (width / heads + 31) / 32 * 32;
    const size_t keys = size_t(2) * c.vision_layers * (patches + 64) * heads * head;
    const size_t one = keys + size_t(c.max_image_tokens()) * (c.text_width + 64) + 3 * edge * edge;
    const size_t looked_at = static_cast<size_t>(c.heads) * (c.max_prefix() + 64);
    return (static_cast<size_t>(c.max_cameras) * one + looked_at) * sizeof(float) * 9 / 8;
}

Engine::Engine(const ModelConfig& config, const Statistics& state, const Statistics& action,
               const std::vector<TensorEntry>& tensors, int threads, const std::string& isa,
               Compute compute, std::shared_ptr<const PackedImage> image)
    : Engine(config, state, action, tensors, [&](size_t bytes) {
          const int count = threads > 0 ? threads : default_threads();
          // Packed weights: storage dtype, or float32 where parts are mixed or float16; padded.
          return make_cpu_backend(bytes * 9 / 4 + (size_t{64} << 20),
                                  buffer_bytes(config, count) + kept_bytes(config), count, isa,
                                  compute, std::move(image));
      }) {}

Engine::Engine(const ModelConfig& config, const Statistics& state, const Statistics& action,
               const std::vector<TensorEntry>& tensors, const MakeBackend& make)
    : config_(config),
      state_statistics_(state),
      action_statistics_(action),
      source_((config.check(), tensors)),
      owner_(getpid()) {
    state_statistics_.check("state", config_.state_dim);
    action_statistics_.check("action", config_.action_dim);
    ops_ = std::make_unique<TimedBackend>(make(source_.total_bytes()));
    ready_ = ops_->info().gpu.sm == 0;
    vision_ = std::make_unique<Vision>(config_, source_, *ops_);
    expert_ = std::make_unique<Expert>(config_, source_, *ops_);
    prefix_ = std::make_unique<Prefix>(config_, source_, *ops_, *expert_);
    flow_ = std::make_unique<Flow>(config_, *ops_, *expert_);
    kept_ = std::make_unique<FrameCache>(config_, *ops_, *vision_);
    ops_->finish_weights();
    for (int i = 0; i < config_.max_cameras; ++i)
        image_tokens_.push_back(ops_->make_mat(config_.max_image_tokens(), config_.text_width));
    // A frame may have up to (patch - 1) pixels a side beyond its whole patches.
    const size_t patch_area = static_cast<size_t>(config_.patch_size) * config_.patch_size;
    pixels_ = ops_->make_buffer(3 * 4 * patch_area * config_.max_patches());
    image_starts_.assign(static_cast<size_t>(config_.max_cameras), 0);
    state_.assign(static_cast<size_t>(config_.max_state_dim), 0.0f);
    sampled_.assign(static_cast<size_t>(config_.chunk_size) * config_.max_action_dim, 0.0f);
}

void Engine::write_packed(const std::string& path, const std::string& bundle,
                          const std::string& config) {
    const auto lock = enter();  // the threads compute the hash
    ops_->write_packed(path, bundle, config);
}

void Engine::check_owner() const {
    if (getpid() != owner_)
        fail(ErrorKind::backend,
             "this engine was made in process %d and is used in its fork %d, where its threads do "
             "not exist; load the policy after the fork, or start processes with 'spawn'",
             static_cast<int>(owner_), static_cast<int>(getpid()));
}

Engine::Entered::Entered(Engine& e) : lock_((e.check_owner(), e.mutex_)), ops_(*e.ops_) {
    ops_.enter();
}

void Engine::check_flow(const FlowInput& f) const {
    check_plan(config_, f.plan);
    const Guidance& g = f.guidance;
    if (!g.previous) return;
    if (g.rows > config_.chunk_size || g.dims > config_.max_action_dim)
        fail(ErrorKind::input, "the previous chunk is [%d, %d], at most [%d, %d] fits", g.rows,
             g.dims, config_.chunk_size, config_.max_action_dim);
    if (g.inference_delay < 0 || g.execution_horizon < 0)
        fail(ErrorKind::input, "inference_delay %d and execution_horizon %d must not be negative",
             g.inference_delay, g.execution_horizon);
}

int Engine::image_tokens(int height, int width) const {
    return vision_->grid(height, width).tokens(config_.scale_factor);
}

void Engine::encode_images(const float* pixels, int cameras, int height, int width, LayerSet skip,
                           float* tokens) {
    const auto lock = enter();
    const int count = image_tokens(height, width);
    for (int i = 0; i < cameras; ++i) {
        check_();
        const Mat out = image_tokens_[0].top(count);
        ops_->write(pixels + size_t(i) * 3 * height * width, {pixels_, 3 * height, width, width});
        vision_->encode(pixels_, height, width, skip, out, nullptr, 0);
        ops_->read(out, tokens + size_t(i) * count * config_.text_width);
    }
}

void Engine::check_cameras(size_t count) const {
    if (count > image_tokens_.size())
        fail(ErrorKind::input, "%zu cameras given, the policy was built for at most %zu", count,
             image_tokens_.size());
}

void Engine::check_cached(const Observation& in) const {
    uint64_t seen = 0;
    if (!in.cached.empty() && in.cached.size() != in.frames.size())
        fail(ErrorKind::input, "cached: expected a camera or -1 for each of %zu frames, got %zu",
             in.frames.size(), in.cached.size());
    for (const int camera : in.cached) {
        if (camera < -1 || camera >= config_.max_cameras)
            fail(ErrorKind::input, "cached: camera %d is outside [-1, %d)", camera,
                 config_.max_cameras);
        if (camera < 0) continue;
        if (seen >> camera & 1)
            fail(ErrorKind::input, "cached: camera %d is named by two frames", camera);
        seen |= uint64_t{1} << camera;
    }
}

void Engine::fill_prefix(const Mat* images, int cameras, const int* tokens, int token_count,
                         const float* state) {
    prefix_tokens_ = 0;
    prefix_->begin();
    for (int i = 0; i < cameras; ++i)
        image_starts_[size_t(i)] = prefix_->add_image(images[i], images[i].data == nullptr);
    prefix_->add_text(tokens, token_count);
    prefix_->add_state(state);
}

int Engine::prefill(const float* image_tokens, int cameras, int tokens_per_camera,
                    const uint8_t* camera_mask, const int* tokens, int token_count,
                    const float* state, const Plan& plan) {
    const auto lock = enter();
    check_plan(config_, plan);
    check_cameras(static_cast<size_t>(cameras));
    if (tokens_per_camera > config_.max_image_tokens())
        fail(ErrorKind::input, "image_tokens: expected at most %d tokens a camera, got %d",
             config_.max_image_tokens(), tokens_per_camera);
    Mat images[kMaxCameras];
    for (int i = 0; i < cameras; ++i) {
        if (!camera_mask[i]) continue;
        images[i] = image_tokens_[static_cast<size_t>(i)].top(tokens_per_camera);
        ops_->write(image_tokens + size_t(i) * tokens_per_camera * config_.text_width, images[i]);
    }
    fill_prefix(images, cameras, tokens, token_count, state);
    return prefix_tokens_ = prefix_->run(plan, nullptr);
}

int Engine::run_flow(const FlowInput& f, int prefix_tokens, float* out, Trace* trace) {
    return flow_->run(f, prefix_tokens, out, trace, check_);
}

int Engine::denoise(const FlowInput& flow, float* out) {
    const auto lock = enter();
    check_flow(flow);
    if (prefix_tokens_ == 0) fail(ErrorKind::input, "denoise() needs a prefill() before it");
    return run_flow(flow, prefix_tokens_, out, nullptr);
}

int Engine::sample_actions(const ModelInput& in, const FlowInput& flow, float* out, Trace* trace) {
    const auto lock = enter();
    check_flow(flow);
    check_cameras(static_cast<size_t>(in.cameras));
    const int tokens = image_tokens(in.height, in.width);
    if (trace) trace->attach(*ops_);
    Mat images[kMaxCameras];
    for (int i = 0; i < in.cameras; ++i) {
        if (!in.camera_mask[i]) continue;
        check_();
        images[i] = image_tokens_[static_cast<size_t>(i)].top(tokens);
        ops_->write(in.pixels + size_t(i) * 3 * in.height * in.width,
                    {pixels_, 3 * in.height, in.width, in.width});
        vision_->encode(pixels_, in.height, in.width, flow.plan.skip_vision, images[i], trace, i);
    }
    check_();
    fill_prefix(images, in.cameras, in.tokens, in.token_count, in.state);
    prefix_tokens_ = prefix_->run(flow.plan, trace);
    const int evaluations = run_flow(flow, prefix_tokens_, out, trace);
    if (trace) {
        const int rows = flow.plan.rows, padded = config_.max_action_dim, dims = config_.action_dim;
        trace->put("out.actions_padded", {1, rows, padded}, out);
        std::vector<float> actions;
        for (int r = 0; r < rows; ++r)
            actions.insert(actions.end(), out + size_t(r) * padded,
                           out + size_t(r) * padded + dims);
        trace->put("out.actions", {1, rows, dims}, actions.data());
    }
    return evaluations;
}

void Engine::reset() {
    const auto lock = enter();
    kept_->forget();
}

void Engine::start_recording(size_t capacity) {
    const auto lock = enter();
    ops_->start(capacity);
}

std::vector<TimedRecord> Engine::take_records(size_t* overwritten) {
    const auto lock = enter();
    return ops_->take(overwritten);
}

Prediction Engine::predict(const Observation& in, const FlowInput& flow, float* normalized,
                           float* actions) {
    const auto lock = enter();
    check_flow(flow);
    check_cameras(in.frames.size());
    check_cached(in);
    const double start = now_ms();
    ops_->mark(0);
    Prediction made;
    Mat images[kMaxCameras];
    const int cameras = static_cast<int>(in.frames.size());
    const FrameCache::Call call{flow.plan, in.tokens, in.token_count};
    for (int i = 0; i < cameras; ++i) {
        const Frame& frame = in.frames[size_t(i)];
        const int cached = flow.plan.caching && !in.cached.empty() ? in.cached[size_t(i)] : -1;
        if (frame.data) images[i] = see(i, frame, call, cached, &made.cache[size_t(i)]);
    }
    check_();

    std::optional<TimedBackend::Stage> stage(std::in_place, *ops_, "prefix");
    std::fill(state_.begin(), state_.end(), 0.0f);
    std::copy_n(in.state, config_.state_dim, state_.begin());
    if (!in.state_is_normalized) state_statistics_.normalize(state_.data(), config_.state_dim);
    if (config_.adapt_to_pi_aloha) aloha_decode_state(state_.data());
    fill_prefix(images, cameras, in.tokens, in.token_count, state_.data());
    prefix_tokens_ = prefix_->run(flow.plan, nullptr);
    ops_->mark(kPrefixDone);

    stage.emplace(*ops_, "flow");
    made.evaluations = run_flow(flow, prefix_tokens_, sampled_.data(), nullptr);
    ops_->mark(kFlowDone);
    const int dims = config_.action_dim;
    for (int r = 0; r < flow.plan.rows; ++r) {
        float* model_space = normalized + size_t(r) * dims;
        std::copy_n(&sampled_[size_t(r) * config_.max_action_dim], dims, model_space);
        if (config_.adapt_to_pi_aloha) aloha_encode_actions(model_space);
        float* robot_units = actions + size_t(r) * dims;
        std::copy_n(model_space, dims, robot_units);
        action_statistics_.unnormalize(robot_units, dims);
        for (int d = 0; d < dims; ++d)
            if (!std::isfinite(robot_units[d]))
                fail(
                    ErrorKind::non_finite,
                    "expected finite actions, got %f in row %d, dimension %d; none is returned. "
                    "Check the state and noise given, then the checkpoint's weights and statistics",
                    double(robot_units[d]), r, d);
    }
    attend(in, flow.plan, made);
    made.timings = timings(in.frames, now_ms() - start);
    return made;
}

// The heads are added here: a row of each is a few hundred numbers.
void Engine::read_looked_at() {
    const Mat of_heads = expert_->looked_at();
    const size_t columns = size_t(of_heads.cols);
    looked_at_.resize(columns * size_t(of_heads.rows));
    ops_->read(of_heads, looked_at_.data());
    for (size_t i = columns; i < looked_at_.size(); ++i) looked_at_[i % columns] += looked_at_[i];
}

void Engine::attend(const Observation& in, const Plan& plan, const Prediction& made) {
    if (!flow_->watched(plan, made.evaluations)) return;
    read_looked_at();
    for (size_t i = 0; i < in.frames.size(); ++i)
        if (made.cache[i].used) kept_->attend(in.cached[i], &looked_at_[size_t(image_starts_[i])]);
}

Timings Engine::timings(const std::vector<Frame>& frames, double total) const {
    Timings times;
    int last = 0;
    for (int i = 0; i < static_cast<int>(frames.size()); ++i) {
        if (!frames[size_t(i)].data) continue;
        times.preprocess += ops_->between(last, 2 * i + 1);
        times.vision += ops_->between(2 * i + 1, 2 * i + 2);
        last = 2 * i + 2;
    }
    times.prefix = ops_->between(last, kPrefixDone);
    times.flow = ops_->between(kPrefixDone, kFlowDone);
    times.total = total;
    return times;
}

Mat Engine::see(int camera, const Frame& frame, const FrameCache::Call& call, int cached,
                CacheReport* report) {
    check_();
    const int height = config_.resize_height ? config_.resize_height : frame.height;
    const int width = config_.resize_width ? config_.resize_width : frame.width;
    const int count = image_tokens(height, width);  // bounds it
    if (cached >= 0 && !kept_->serves(height, width)) cached = -1;
    const bool known = cached >= 0 && kept_->is_known(cached, frame, height, width, call);
    if (!known) {
        const TimedBackend::Stage stage(*ops_, "preprocess", camera);
        ops_->letterbox(frame, pixels_, height, width);
    }
    ops_->mark(2 * camera + 1);
    Mat tokens = image_tokens_[size_t(camera)].top(count);
    {
        const TimedBackend::Stage stage(*ops_, "vision", camera);
        if (cached < 0)
            vision_->encode(pixels_, height, width, call.plan.skip_vision, tokens, nullptr, camera);
        else if (!known)
            kept_->update(cached, pixels_, call);
    }
    if (cached >= 0) {
        tokens = kept_->tokens(cached);
        *report = kept_->report(cached);
    }
    ops_->mark(2 * camera + 2);
    return tokens;
}

}  // namespace smolvla

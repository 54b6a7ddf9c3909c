// Engine::warm_up: what stages there can be, and a first call.
#include <algorithm>

#include "model/engine.h"
#include "runtime/error.h"

namespace smolvla {

void Engine::warm_up(const WarmUp& calls, const std::function<void(int, int)>& progress) {
    const auto lock = enter();
    if (calls.frame_height < 1 || calls.frame_width < 1 || calls.frame_height > 16384 ||
        calls.frame_width > 16384)
        fail(ErrorKind::input, "frames of %d x %d pixels are outside 1..16384", calls.frame_width,
             calls.frame_height);
    const int longest = config_.max_prefix(), cameras = config_.max_cameras;
    int buckets = 0;
    for (int n = 1; n <= longest; n = ops_->stage_rows(n) + 1) ++buckets;
    const int all = cameras + 2 + buckets + 2 + static_cast<int>(calls.cached.size());
    int done = 0;
    const auto one_more = [&] {
        progress(done++, all);
        check_();
    };

    const Plan& plan = calls.plan;
    check_plan(config_, plan);
    const std::vector<float> noise(static_cast<size_t>(plan.rows) * config_.max_action_dim, 0.0f);
    const FlowInput flow{noise.data(), plan, {}, {}};
    const size_t bytes = size_t(3) * calls.frame_height * calls.frame_width;
    const std::vector<uint8_t> black(bytes, 0);
    const std::vector<int> tokens(static_cast<size_t>(config_.tokenizer_max_length), 0);
    const Frame frame{black.data(), true, calls.frame_height, calls.frame_width};
    ops_->reserve_frames(cameras, bytes);
    // The stages run here as they will, and load what they start.
    Mat images[kMaxCameras];
    for (int i = 0; i < cameras; ++i) {
        one_more();
        images[i] = see(i, frame, {plan, nullptr, 0}, -1, nullptr);
    }
    const int height = config_.resize_height ? config_.resize_height : frame.height;
    const int width = config_.resize_width ? config_.resize_width : frame.width;
    for (const int camera : calls.cached) {
        one_more();
        if (plan.caching && kept_->serves(height, width))
            kept_->record(camera, pixels_, height, width, plan);
    }
    one_more();
    std::fill(state_.begin(), state_.end(), 0.0f);
    fill_prefix(images, cameras, tokens.data(), static_cast<int>(tokens.size()), state_.data());
    const int prefix_tokens = prefix_->run(plan, nullptr);  // not kept: denoise() wants a prefill()
    one_more();
    run_flow(flow, prefix_tokens, sampled_.data(), nullptr);
    if (plan.watches()) read_looked_at();

    for (int n = 1; n <= longest; n = ops_->stage_rows(n) + 1) {
        one_more();
        prefix_->record(plan, std::min(n, longest));
    }
    for (const bool guided : {false, true}) {
        one_more();
        flow_->record(plan, guided);
    }
    progress(all, all);
    ready_ = true;
}

}  // namespace smolvla

#include "model/frame_cache.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "ops/letterbox.h"

namespace smolvla {
namespace {

size_t bytes_of(const Frame& frame) {
    return size_t(3) * frame.height * frame.width * (frame.is_u8 ? 1 : sizeof(float));
}

}  // namespace

FrameCache::FrameCache(const ModelConfig& c, Backend& ops, Vision& vision)
    : config_(c), ops_(ops), vision_(vision), cameras_(size_t(c.max_cameras)) {
    const int blocks = c.max_image_tokens();
    block_ids_ = ops.make_ints(static_cast<size_t>(blocks));
    change_ = ops.make_mat(1, blocks);
    host_change_.assign(size_t(blocks), 0.0f);
    all_blocks_.resize(size_t(blocks));
    std::iota(all_blocks_.begin(), all_blocks_.end(), 0);
}

bool FrameCache::serves(int height, int width) const {
    const ImageGrid g = vision_.grid(height, width);
    return g.rows == g.cols;  // a side divides by the scale: grid() sees to it
}

void FrameCache::prepare(int camera) {
    std::unique_ptr<Camera>& c = cameras_[size_t(camera)];
    if (!c) c = std::make_unique<Camera>(config_.max_image_tokens());
    if (c->reference) return;
    // When memory has run out, the next attempt goes on from here: a backend takes nothing back.
    vision_.make_kept(c->kept);
    const size_t edge = size_t(config_.image_size) + size_t(config_.patch_size);
    c->reference = ops_.make_buffer(3 * edge * edge);
}

void FrameCache::forget() {
    for (const auto& camera : cameras_)
        if (camera) camera->choice.forget();
}

FrameCache::Camera& FrameCache::of(int camera) {
    prepare(camera);
    return *cameras_[size_t(camera)];
}

int FrameCache::side(const Camera& c) const {
    return c.height / (config_.patch_size * config_.scale_factor);
}

Padding FrameCache::padding(const Frame& frame, int height, int width) const {
    const Inner inner = letterbox_inner(frame, height, width);
    const int edge = config_.patch_size * config_.scale_factor;
    return {(height - inner.height) / edge, (width - inner.width) / edge};
}

bool FrameCache::is_known(int camera, const Frame& frame, int height, int width, const Call& call) {
    Camera& c = of(camera);
    const Plan& plan = call.plan;
    if (c.in_work) c.choice.forget();
    c.in_work = true;
    // Patches are whole: what a frame has beyond them is never seen.
    c.height = height;
    c.width = width;
    c.choice.look(height, width, call.prompt, call.prompt_tokens, plan.cache, plan.skip_vision,
                  plan.cache.keep_padding ? padding(frame, height, width) : Padding{});
    const size_t bytes = bytes_of(frame);
    const bool same = c.frame.size() == bytes && c.shape.is_u8 == frame.is_u8 &&
                      c.shape.height == frame.height &&
                      std::memcmp(c.frame.data(), frame.data, bytes) == 0;
    if (same && c.choice.serves_again()) {
        c.choice.done(c.choice.decide(host_change_.data(), side(c), true));
        c.in_work = false;
        return true;
    }
    if (!same) {
        c.frame.assign(static_cast<const char*>(frame.data),
                       static_cast<const char*>(frame.data) + bytes);
        c.shape = frame;
    }
    return false;
}

void FrameCache::update(int camera, const float* pixels, const Call& call) {
    Camera& c = of(camera);
    const int blocks = side(c) * side(c), edge = config_.patch_size * config_.scale_factor;
    const LayerSet skip = call.plan.skip_vision;
    ops_.block_change(pixels, c.reference, c.height, c.width, config_.patch_size,
                      config_.scale_factor, change_.columns(0, blocks));
    ops_.read(change_.columns(0, blocks), host_change_.data());
    const TokenCache::Work work = c.choice.decide(host_change_.data(), side(c), false);
    const std::vector<int>& chosen =
        work == TokenCache::Work::all ? all_blocks_ : c.choice.chosen();
    const int count =
        work == TokenCache::Work::all ? blocks : static_cast<int>(c.choice.chosen().size());
    if (work == TokenCache::Work::all) {
        vision_.encode_kept(pixels, c.height, c.width, skip, c.kept, camera);
    } else if (work == TokenCache::Work::some) {
        c.choice.set_drift(vision_.encode_blocks(
            pixels, c.height, c.width, skip, chosen.data(), count,
            [&](int i) { return c.choice.clean(i); }, c.kept, camera));
    }
    if (count > 0) {
        ops_.write(chosen.data(), static_cast<size_t>(count), block_ids_);
        ops_.copy_blocks(pixels, c.height, c.width, edge, block_ids_, count, c.reference);
    }
    c.choice.done(work);
    c.in_work = false;
}

void FrameCache::record(int camera, const float* pixels, int height, int width, const Plan& plan) {
    Camera& c = of(camera);
    c.choice.forget();
    const int blocks = vision_.grid(height, width).tokens(config_.scale_factor);
    const int grain = std::max(1, blocks / 8), most = 3 * blocks / 4;
    const int patch = config_.patch_size, scale = config_.scale_factor;
    const int across = width / (patch * scale);
    const LayerSet skip = plan.skip_vision;
    // What is in no stage: starting it loads it.
    ops_.block_change(pixels, c.reference, height, width, patch, scale, change_.columns(0, blocks));
    ops_.write(all_blocks_.data(), size_t(blocks), block_ids_);
    ops_.copy_blocks(pixels, height, width, patch * scale, block_ids_, blocks, c.reference);
    vision_.record_kept(pixels, height, width, skip, c.kept, 0, camera);
    for (int count = 1; count < blocks; ++count) {
        const bool bucket = count % grain == 0 && count < most + grain;
        // A keyframe of a frame with padding at one side, whichever shape it has.
        const bool rest = plan.cache.keep_padding && count % across == 0;
        if (bucket || rest) vision_.record_kept(pixels, height, width, skip, c.kept, count, camera);
    }
}

void FrameCache::attend(int camera, const float* mass) { of(camera).choice.attend(mass); }

Mat FrameCache::tokens(int camera) const {
    const Camera& c = *cameras_[size_t(camera)];
    return c.kept.tokens.top(side(c) * side(c));
}

const CacheReport& FrameCache::report(int camera) const {
    return cameras_[size_t(camera)]->choice.report();
}

}  // namespace smolvla

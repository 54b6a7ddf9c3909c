// The cameras whose tokens are kept from frame to frame; see model/token_cache.h.
#pragma once

#include <memory>

#include "model/token_cache.h"
#include "model/vision.h"

namespace smolvla {

class FrameCache {
public:
    FrameCache(const ModelConfig& config, Backend& ops, Vision& vision);

    struct Call {
        const Plan& plan;
        const int* prompt;
        int prompt_tokens;
    };

    // Whether frames of this size can be cached: square ones of whole blocks.
    bool serves(int height, int width) const;
    // Makes a camera's memory, which a first call would make.
    void prepare(int camera);
    // Makes and starts what calls of such frames will need; forgets what was kept.
    void record(int camera, const float* pixels, int height, int width, const Plan& plan);
    void forget();

    // The first thing to ask of a frame, `height` x `width` when resized. True: it is the last one
    // again, and tokens() are its tokens, exactly.
    bool is_known(int camera, const Frame& frame, int height, int width, const Call& call);
    // Brings tokens() up to the frame.
    void update(int camera, const float* pixels, const Call& call);
    // How much each of its tokens was looked at in the call that updated it.
    void attend(int camera, const float* mass);
    Mat tokens(int camera) const;
    const CacheReport& report(int camera) const;

private:
    struct Camera {
        explicit Camera(int blocks) : choice(blocks) {}
        TokenCache choice;
        Vision::Kept kept;
        float* reference = nullptr;  // pixels of each block as it was computed
        int height = 0, width = 0;
        bool in_work = false;     // a call began with it and has not come to its end
        std::vector<char> frame;  // the last one's bytes
        Frame shape;
    };
    Camera& of(int camera);
    int side(const Camera& camera) const;
    Padding padding(const Frame& frame, int height, int width) const;

    const ModelConfig config_;
    Backend& ops_;
    Vision& vision_;
    std::vector<std::unique_ptr<Camera>> cameras_;
    int* block_ids_;
    Mat change_;
    std::vector<float> host_change_;
    std::vector<int> all_blocks_;
};

}  // namespace smolvla

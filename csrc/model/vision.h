// Vision tower and connector: pixels [3, H, W] in [-1, 1] -> image tokens [tokens, text_width].
#pragma once

#include <functional>

#include "model/config.h"
#include "model/plan.h"
#include "model/trace.h"
#include "ops/ops.h"

namespace smolvla {

// What one image size means for the tower.
struct ImageGrid {
    int rows, cols;  // patches down and across
    int side;  // the pixel shuffle sees the patches as side x side (LeRobot: sqrt of their count)
    int patches() const { return rows * cols; }
    int tokens(int scale) const { return (side / scale) * (side / scale); }
};

class Vision {
public:
    Vision(const ModelConfig& config, const TensorSource& source, Backend& ops);

    // Raises an input error where LeRobot's pixel shuffle fails too.
    ImageGrid grid(int height, int width) const;
    // pixels: [3, height, width] in the backend's memory. Writes grid.tokens() rows; `index` is the
    // camera's, for which the stage is recorded. Skipped layers are the identity.
    void encode(const float* pixels, int height, int width, LayerSet skip, Mat tokens, Trace* trace,
                int index);

    // What a camera keeps from frame to frame: every layer's keys and values, and the tokens.
    struct Kept {
        std::vector<KvStore*> kv;
        Mat tokens;
    };
    // Makes what of it is not there yet.
    void make_kept(Kept& kept);
    // As `encode`, for kept.tokens; the keys and values stay too.
    void encode_kept(const float* pixels, int height, int width, LayerSet skip, Kept& kept,
                     int index);
    // Computes `count` blocks (a token each, by number) and leaves what is kept of the others: they
    // are attended to as they were. `clean(i)`: block i of these is one whose token should not have
    // changed. Returns how far the tokens of such have moved, relatively, at most; -1 if there are
    // none.
    float encode_blocks(const float* pixels, int height, int width, LayerSet skip,
                        const int* blocks, int count, const std::function<bool(int)>& clean,
                        Kept& kept, int index);
    // The stages of the two, of `count` blocks (0: of all).
    void record_kept(const float* pixels, int height, int width, LayerSet skip, Kept& kept,
                     int count, int index);

private:
    struct Layer {
        const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias;
        const Linear *qkv, *out, *up, *down;
        const float* down_scale;  // of down's inputs, [vision_mlp] in whole panels, or null
    };
    bool whole(const ImageGrid& grid) const;  // the position table is as it has to be
    Mat positions(const ImageGrid& grid);
    void use(const ImageGrid& grid);
    // What is computed, and where it goes.
    struct Pass {
        ImageGrid grid;
        const float* pixels;
        int height, width;
        LayerSet skip;
        Kept* kept;      // null: keys and values are needed no longer than their layer
        int blocks = 0;  // 0: all; else those of block_ids_, by themselves
        Mat tokens = {};
        Trace* trace = nullptr;
        std::string suffix = {};
    };
    void run(const Pass& pass);
    void run_layer(size_t index, const Pass& pass, Mat x);
    void put_tokens(const Pass& pass);
    StageKey key(const Pass& pass, int index) const;

    const ModelConfig config_;
    Backend& ops_;
    std::vector<Layer> layers_;
    const Linear *patch_, *connector_;
    const float *norm_weight_, *norm_bias_;
    Mat position_table_;
    KvStore* kv_;
    int* lengths_;  // of every row: all patches
    std::vector<int> ids_;
    ImageGrid used_{0, 0, 0};  // what lengths and gathered positions are of
    Mat patches_, x_, normed_, qkv_, attended_, hidden_, gathered_positions_, shuffled_;
    // Of blocks by themselves.
    int *patch_ids_, *block_ids_;
    Mat picked_positions_, new_tokens_, old_tokens_, sums_;
    std::vector<float> host_sums_;
};

// A vector of the checkpoint in float32, beside the backend's weights.
const float* load_vector(const TensorSource& source, Backend& ops, const std::string& name,
                         int size);

}  // namespace smolvla

// Vision tower and connector: pixels [3, H, W] in [-1, 1] -> image tokens [tokens, text_width].
#pragma once

#include "model/config.h"
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
    // camera's, for which the stage is recorded.
    void encode(const float* pixels, int height, int width, Mat tokens, Trace* trace, int index);

private:
    struct Layer {
        const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias;
        const Linear *qkv, *out, *up, *down;
        const float* down_scale;  // of down's inputs, [vision_mlp] in whole panels, or null
    };
    bool whole(const ImageGrid& grid) const;  // the position table is as it has to be
    Mat positions(const ImageGrid& grid);
    void use(const ImageGrid& grid);
    void run(const ImageGrid& grid, const float* pixels, int height, int width, Mat tokens,
             Trace* trace, const std::string& suffix);

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
};

// A vector of the checkpoint in float32, beside the backend's weights.
const float* load_vector(const TensorSource& source, Backend& ops, const std::string& name,
                         int size);

}  // namespace smolvla

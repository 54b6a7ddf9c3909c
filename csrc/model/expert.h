// The action expert: one denoising step's velocity for the noisy actions, against a fixed prefix.
#pragma once

#include "model/block.h"
#include "model/schedule.h"
#include "model/trace.h"

namespace smolvla {

class Expert {
public:
    Expert(const ModelConfig& config, const TensorSource& source, Backend& ops);

    // Keys (after RoPE) and values [n, kv_width] of a text layer. Cross layers project them here,
    // once per call and not once per step: they depend on the prefix only.
    // Nothing is made for layers that are skipped.
    void set_prefix(int text_layer, Mat keys, Mat values, LayerSet skip);

    // The time half of action_time_mlp_in for the times of these steps, a table of vectors.
    void set_times(const std::vector<FlowStep>& steps);

    // Actions follow this many tokens of the prefix.
    void follow(int prefix_tokens);

    // Which of its layers are the identity, which add what they added when they last ran, and which
    // keep that for later; whether those of cross-attention sum up what they look at.
    struct Layers {
        LayerSet skip = 0, reuse = 0, keep = 0;
        bool watch = false;
    };

    // Makes the memory of looked_at() if it is not there yet; before evaluations that watch.
    void make_looked_at();
    // How much the last such evaluation looked at each token of the prefix: summed over its layers
    // of cross-attention and its rows, [heads, tokens of the longest prefix].
    Mat looked_at() const { return looked_at_; }
    // Whether an evaluation of these layers looks at the prefix by cross-attention at all.
    bool looks(const Layers& layers) const;

    // Computes the velocity of actions x [rows, max_action_dim] at step *step, an int of the
    // backend's. `traced` is the evaluation's number where there is a trace.
    void evaluate(Mat x, const int* step, const Layers& layers, Trace* trace, int traced);
    // Where it is: [rows, max_action_dim].
    Mat velocity(int rows) const { return velocity_.top(rows); }

private:
    struct Layer {
        Block block;
        int text_layer;
        bool self;
        const Linear *cross_k, *cross_v;
        KvStore* kv;
        Mat update;  // what it last added to its rows
    };
    enum class Watch { no, first, more };
    void run(const Layer& layer, Mat x, Watch watch);
    void fold_time_mlp(const TensorSource& source);

    const ModelConfig config_;
    Backend& ops_;
    std::vector<Layer> layers_;
    const Linear *action_in_, *time_out_, *action_out_;
    const float* norm_;
    RopeTable rope_;
    const float *time_weight_,
        *time_bias_;                      // [expert_width, expert_width], the time half; its bias
    std::vector<float> wave_, time_row_;  // of one step
    Mat time_table_;
    std::vector<float> times_;  // of its rows
    std::vector<int> host_lengths_;
    int *self_lengths_, *cross_lengths_;  // keys of each action token
    int* first_;                          // where the actions' own keys begin
    Mat suffix_, x_, normed_, qkv_, attended_, hidden_, final_, velocity_, cross_k_, cross_v_;
    Mat looked_at_;
};

}  // namespace smolvla

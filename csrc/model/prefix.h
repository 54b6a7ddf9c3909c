// Prefix: [image tokens | text tokens | state token] through the language model, for its keys and
// values alone. Only valid tokens enter: no valid row attends to a masked one and positions are the
// cumulative count of valid tokens, so leaving the others out changes nothing.
#pragma once

#include "model/block.h"
#include "model/expert.h"
#include "model/trace.h"

namespace smolvla {

class Prefix {
public:
    Prefix(const ModelConfig& config, TensorSource& source, Backend& ops, Expert& expert);

    // Building the sequence, in order: images (with their special tokens), text, state.
    void begin();
    // Returns the number of the first of its tokens.
    int add_image(Mat tokens, bool masked);
    void add_text(const int* ids, int count);
    void add_state(const float* state);  // [max_state_dim], normalised, zero-padded
    // Runs the layers and hands each layer's keys and values to the expert, those of skipped layers
    // too, which pass on what they got. Returns the token count.
    int run(const Plan& plan, Trace* trace);
    // Records the stage that a prefix of so many tokens runs.
    void record(const Plan& plan, int tokens);

private:
    void load_embedding(TensorSource& source);
    void add_special(int id);
    void run_stage(const Plan& plan, int rows, bool record);
    void run_layers(const Plan& plan, int rows, Trace* trace);
    Mat next_rows(int count);

    const ModelConfig config_;
    Backend& ops_;
    Expert& expert_;
    std::vector<Block> layers_;
    const Linear* state_in_;
    Table embedding_;
    std::vector<float> embedding_scales_;
    RopeTable rope_;
    KvStore* kv_;
    std::vector<int> host_lengths_;
    int* lengths_;
    int count_ = 0;
    Mat x_, normed_, qkv_, attended_, hidden_, state_;
};

}  // namespace smolvla

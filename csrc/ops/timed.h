// A backend in front of another one that writes down what it was asked to do, and when.
//
// The engine always computes through it. While nothing is recorded an operation costs one branch
// more; while recording, two readings of the clock and one record into memory that was reserved by
// start(). Operations do not overlap: each returns when its result is there.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "ops/ops.h"

namespace smolvla {

// One operation, or one stage of the model with the operations inside it.
struct TimedRecord {
    const char* kind = "";    // "linear", "attention", ...; of a stage: "vision", "prefix", ...
    const char* weight = "";  // tensor names joined by '+'; lives as long as the backend
    bool stage = false;
    int index = 0;                             // of a stage: which camera
    int rows = 0, in = 0, out = 0, heads = 0;  // attention: in is the longest row's keys
    int64_t flops = 0;                         // of what reaches the result; 2 a multiply-add
    int64_t bytes = 0;                         // least traffic: every operand once
    const char* compute = "float32";           // what its products are made in
    int64_t start_ns = 0, end_ns = 0;          // of the steady clock
};

class TimedBackend final : public Backend {
public:
    explicit TimedBackend(std::unique_ptr<Backend> backend);

    // Reserves room for `capacity` records and begins. Of more, the first are overwritten. Raises a
    // backend error on a GPU, whose operations are in recorded stages and end after they are asked
    // for.
    void start(size_t capacity);
    // Ends recording. The last `capacity` records in the order in which they ended, and how many
    // were overwritten.
    std::vector<TimedRecord> take(size_t* overwritten);

    // Marks a stage from here to the end of the scope.
    class Stage {
    public:
        Stage(TimedBackend& ops, const char* kind, int index = 0);
        ~Stage();
        Stage(const Stage&) = delete;
        Stage& operator=(const Stage&) = delete;

    private:
        TimedBackend& ops_;
        TimedRecord record_;
    };

    BackendInfo info() const override { return backend_->info(); }
    LinearInfo describe(const Linear* w) const override { return weights_.at(w); }
    // Every linear layer in the order of loading.
    std::vector<LinearInfo> linears() const;
    const Linear* load_linear(const TensorSource& source, const std::vector<std::string>& weights,
                              const std::vector<std::string>& biases, int in,
                              const std::vector<int>& out, bool gated) override;
    const Linear* make_linear(const std::string& name, const float* weight, int out,
                              int in) override;
    float* make_weights(const std::string& name, size_t count) override {
        return backend_->make_weights(name, count);
    }
    float* make_host_weights(const std::string& name, size_t count) override {
        return backend_->make_host_weights(name, count);
    }
    bool weights_filled() const override { return backend_->weights_filled(); }
    void finish_weights() override { backend_->finish_weights(); }
    void write_packed(const std::string& path, const std::string& bundle,
                      const std::string& config) override {
        backend_->write_packed(path, bundle, config);
    }
    KvStore* make_kv(int kv_heads, int head_dim, int capacity) override;
    float* make_buffer(size_t count) override { return backend_->make_buffer(count); }
    int* make_ints(size_t count) override { return backend_->make_ints(count); }
    Mat make_mat(int rows, int cols, Storage storage = Storage::f32) override {
        return backend_->make_mat(rows, cols, storage);
    }
    Storage activation_storage(int unit) const override {
        return backend_->activation_storage(unit);
    }
    Mat operand(Mat activation, const Linear* reader) const override {
        return backend_->operand(activation, reader);
    }

    void write(const float* values, Mat to) override { backend_->write(values, to); }
    void write(const int* values, size_t count, int* to) override {
        backend_->write(values, count, to);
    }
    void read(Mat from, float* values) override { backend_->read(from, values); }
    void stage(const StageKey& key, Body body) override { backend_->stage(key, body); }
    void record_stage(const StageKey& key, Body body) override {
        backend_->record_stage(key, body);
    }
    void reserve_frames(int cameras, size_t bytes) override {
        backend_->reserve_frames(cameras, bytes);
    }
    void enter() override { backend_->enter(); }
    void leave() override { backend_->leave(); }
    void mark(int moment) override { backend_->mark(moment); }
    double between(int first, int second) const override {
        return backend_->between(first, second);
    }
    int stage_rows(int rows) const override { return backend_->stage_rows(rows); }
    void advance(int* number) override { backend_->advance(number); }

    void linear(Mat x, const Linear* w, Mat y, const LinearOptions& options) override;
    void layer_norm(Mat x, const float* weight, const float* bias, float eps, Mat y) override;
    void rms_norm(Mat x, const float* weight, float eps, Mat y) override;
    void rope(Mat x, int heads, Mat cosine, Mat sine, const int* first) override;
    void store_kv(Mat keys, Mat values, KvStore* kv, const int* first) override;
    void scatter_kv(Mat keys, Mat values, KvStore* kv, const int* positions) override;
    void rope_store(Mat q, int heads, Mat keys, Mat values, Mat cosine, Mat sine, const int* first,
                    KvStore* kv) override;
    void attention(Mat q, const KvStore* kv, const AttentionShape& shape, Mat out) override;
    void attention_mass(Mat q, const KvStore* kv, const AttentionShape& shape, bool add,
                        Mat mass) override;
    void letterbox(const Frame& frame, float* pixels, int height, int width) override;
    void patchify(const float* pixels, int height, int width, int patch, const int* ids,
                  Mat rows) override;
    void block_change(const float* pixels, const float* reference, int height, int width, int patch,
                      int scale, Mat change) override;
    void copy_blocks(const float* pixels, int height, int width, int side, const int* ids,
                     int count, float* to) override;
    void pixel_shuffle(Mat x, int side, int scale, Mat out) override;
    void gather_rows(const Table& table, const int* ids, int count, float scale, Mat out) override;
    void copy(Mat x, float scale, Mat y) override;
    void pick_rows(Mat x, const int* ids, Mat out) override;
    void put_rows(Mat x, const int* ids, Mat out) override;
    void add(Mat x, Mat z, float scale, Mat y) override;
    void compare(Mat a, Mat b, int columns, Mat sums) override;
    void flow_update(Mat x, Mat v, Mat schedule, const int* step, const Pull& pull,
                     Mat last) override;

private:
    bool recording() const { return capacity_ != 0; }
    const Linear* noted(const Linear* made);
    void put(const TimedRecord& record);
    TimedRecord attention_record(const char* kind, Mat q, const KvStore* kv,
                                 const AttentionShape& shape, Mat out, int sides) const;
    template <class Body>
    void timed(TimedRecord record, const Body& body);

    const std::unique_ptr<Backend> backend_;
    const Compute compute_;
    const int kv_element_bytes_;
    std::vector<const Linear*> loaded_;
    std::unordered_map<const Linear*, LinearInfo> weights_;
    std::unordered_map<const KvStore*, int> kv_widths_;  // kv_heads * head_dim
    std::vector<TimedRecord> records_;
    size_t capacity_ = 0;  // 0: not recording
    size_t count_ = 0;     // put since start(), overwritten ones included
};

}  // namespace smolvla

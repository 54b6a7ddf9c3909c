// The CPU backend: cuts each operation into items for the thread pool and calls the chosen kernels.
#include "cpu/backend.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "cpu/attention.h"
#include "cpu/image.h"
#include "cpu/isa.h"
#include "cpu/linear.h"
#include "cpu/rows.h"
#include "runtime/error.h"
#include "runtime/threads.h"

namespace smolvla {
namespace cpu {
namespace {

// What weights in bfloat16 are multiplied with.
Storage operands_of(const Kernels& kernels, Compute compute) {
    if (compute == Compute::float32) return Storage::f32;
    return kernels.gemm_words != nullptr ? Storage::bf16 : Storage::rounded;
}

Layout narrow_layout(Storage operands) {
    return operands == Storage::bf16 ? Layout::bf16_words : Layout::bf16_columns;
}

std::string order_name(CodeOrder order) {
    return "o" + std::to_string(order.offset) + "r" + std::to_string(order.run);
}

// Everything that the bytes of a packed weight depend on, beside the weight.
std::string layout_name(const Kernels& kernels, Storage operands) {
    return "panel" + std::to_string(kPanel) + ".chain" + std::to_string(kDepthBlock) +
           (narrow_layout(operands) == Layout::bf16_words ? ".words" : ".columns") + ".codes" +
           order_name(kernels.dot8->order) + order_name(kernels.dot4->order) + ".align" +
           std::to_string(Arena::room_of(1)) + ".le";
}

class CpuBackend final : public Backend {
public:
    CpuBackend(size_t weight_bytes, size_t buffer_bytes, int threads, const Kernels& kernels,
               Compute compute, std::shared_ptr<const PackedImage> image)
        : kernels_(kernels),
          compute_(compute),
          operands_(operands_of(kernels_, compute)),
          weights_(weight_bytes, checked(std::move(image))),
          buffers_(buffer_bytes),
          pool_(threads),
          scratch_(static_cast<size_t>(pool_.size())) {}

    const Linear* load_linear(const TensorSource& source, const std::vector<std::string>& weights,
                              const std::vector<std::string>& biases, int in,
                              const std::vector<int>& out, bool gated) override {
        linears_.push_back(std::make_unique<PackedLinear>(pack_linear(
            weights_, source, weights, biases, in, out, gated,
            {narrow_layout(operands_), kernels_.dot8->order, kernels_.dot4->order}, pool_)));
        const PackedLinear& w = *linears_.back();
        if (w.codes()) {
            reserve_rows(in, 0);
            reserve_scratch(operand_ld(in));
        } else if (compute_ == Compute::bfloat16)
            reserve_scratch(size_t(block_rows(kernels_, w)) * operand_ld(in));
        return &w;
    }

    const Linear* make_linear(const std::string& name, const float* weight, int out,
                              int in) override {
        linears_.push_back(
            std::make_unique<PackedLinear>(pack_matrix(weights_, name, weight, out, in)));
        return linears_.back().get();
    }

    float* make_weights(const std::string& name, size_t count) override {
        return weights_.floats(count, name);
    }
    bool weights_filled() const override { return weights_.filled(); }
    void finish_weights() override { weights_.finish(); }
    void write_packed(const std::string& path, const std::string& bundle,
                      const std::string& config) override {
        weights_.write(path,
                       {layout_name(kernels_, operands_), compute_name(compute_), bundle, config},
                       pool_);
    }

    KvStore* make_kv(int kv_heads, int head_dim, int capacity) override {
        auto kv = std::make_unique<PackedKv>();
        kv->kv_heads = kv_heads;
        kv->head_dim = head_dim;
        kv->capacity = ceil_div(capacity, kPanel) * kPanel;
        kv->storage = operands_;
        kv->keys = make_buffer(kv->key_words());
        kv->values = make_buffer(kv->value_words());
        reserve_scratch(attention_words(attention_gemm(), *kv));
        kvs_.push_back(std::move(kv));
        return kvs_.back().get();
    }

    Storage activation_storage(int unit) const override {
        return operands_ == Storage::bf16 && unit % 2 != 0 ? Storage::rounded : operands_;
    }

    float* make_buffer(size_t count) override { return buffers_.floats(count); }
    Mat make_mat(int rows, int cols, Storage storage = Storage::f32) override {
        reserve_rows(cols, rows);
        return Backend::make_mat(rows, cols, storage);
    }

    Mat operand(Mat activation, const Linear* reader) const override {
        // Integers are rounded from floats that never leave the cache. Rows have room for them: a
        // quarter of the columns in words, sums and a scale fit half of them and a cache line.
        if (packed(reader).codes()) activation.storage = Storage::i8;
        return activation;
    }

    void linear(Mat x, const Linear* weight, Mat y, const LinearOptions& o) override {
        const PackedLinear& w = packed(weight);
        if (w.codes() && x.storage != Storage::i8) x = quantized(x);
        run_linear(place(), x, w, y, o, operand_storage(w, x.storage));
    }

    void layer_norm(Mat x, const float* weight, const float* bias, float eps, Mat y) override {
        norm(kernels_.layer_norm, x, weight, bias, eps, y);
    }
    void rms_norm(Mat x, const float* weight, float eps, Mat y) override {
        norm(kernels_.rms_norm, x, weight, nullptr, eps, y);
    }

    void rope(Mat x, int heads, Mat cosine, Mat sine, const int* first) override {
        const int start = first ? *first : 0;
        each_row(x.rows, [&](int r, int) {
            kernels_.rope(x.row(r), heads, x.cols / heads, cosine.row(start + r),
                          sine.row(start + r));
        });
    }

    void store_kv(Mat keys, Mat values, KvStore* store, const int* at) override {
        run_store_kv(pool_, keys, values, *static_cast<PackedKv*>(store), at ? *at : 0);
    }

    void scatter_kv(Mat keys, Mat values, KvStore* store, const int* positions) override {
        PackedKv* kv = static_cast<PackedKv*>(store);
        // A head an item: two positions may share a word of values.
        pool_.run(kv->kv_heads, [&](int head, int) {
            for (int r = 0, n = 0; r < keys.rows; r += n) {
                n = run_in_panel(positions + r, keys.rows - r);
                pack_keys(*kv, head, keys.below(r, n), positions[r]);
                pack_values(*kv, head, values.below(r, n), positions[r], Neighbour::kept);
            }
        });
    }

    void attention(Mat q, const KvStore* store, const AttentionShape& shape, Mat out) override {
        run_attention(place(), attention_gemm(), q, *static_cast<const PackedKv*>(store), shape,
                      out);
    }
    void attention_mass(Mat q, const KvStore* store, const AttentionShape& shape, bool add,
                        Mat mass) override {
        run_attention_mass(place(), attention_gemm(), q, *static_cast<const PackedKv*>(store),
                           shape, add, mass);
    }
    void letterbox(const Frame& frame, float* pixels, int height, int width) override {
        const Letterbox box(frame, height, width);
        each_row(height, [&](int y, int) { box.row(y, pixels); });
    }

    void patchify(const float* pixels, int height, int width, int patch, const int* ids,
                  Mat rows) override {
        const int across = width / patch;
        const size_t plane = size_t(height) * width;
        each_row(rows.rows, [&](int r, int) {
            const int id = ids ? ids[r] : r;
            const float* from = pixels + size_t(id / across) * patch * width + id % across * patch;
            int column = 0;
            for (int c = 0; c < 3; ++c)
                for (int y = 0; y < patch; ++y, column += patch)
                    kernels_.scale_rows(from + c * plane + size_t(y) * width, 0, 1, patch, nullptr,
                                        rows.at(r, column), 0, rows.storage);
        });
    }

    void pixel_shuffle(Mat x, int side, int scale, Mat out) override {
        const int across = side / scale;
        each_row(out.rows, [&](int r, int) {
            float* to = out.row(r);
            const int words = words_of(x.cols, x.storage);
            for (int dy = 0; dy < scale; ++dy)
                for (int dx = 0; dx < scale; ++dx, to += words)
                    std::memcpy(to,
                                x.row((r / across * scale + dy) * side + r % across * scale + dx),
                                sizeof(float) * static_cast<size_t>(words));
        });
    }

    void gather_rows(const Table& table, const int* ids, int count, float scale, Mat out) override {
        cpu::gather_rows(table, ids, count, scale, out);
    }

    void copy(Mat x, float scale, Mat y) override {
        each_row(x.rows, [&](int r, int) {
            kernels_.scale_rows(x.row(r), x.ld, 1, x.cols, &scale, y.row(r), y.ld, y.storage);
        });
    }

    void block_change(const float* pixels, const float* reference, int height, int width, int patch,
                      int scale, Mat change) override {
        const FrameBlocks blocks{height, width, patch * scale};
        each_row(blocks.down(), [&](int y, int) {
            for (int x = 0; x < blocks.across(); ++x)
                change.data[y * blocks.across() + x] =
                    cpu::block_change(pixels, reference, blocks, y, x, patch);
        });
    }

    void copy_blocks(const float* pixels, int height, int width, int side, const int* ids,
                     int count, float* to) override {
        const FrameBlocks blocks{height, width, side};
        each_row(count, [&](int i, int) { cpu::copy_block(pixels, blocks, ids[i], to); });
    }

    void pick_rows(Mat x, const int* ids, Mat out) override {
        each_row(out.rows, [&](int r, int) { std::copy_n(x.row(ids[r]), x.cols, out.row(r)); });
    }
    void put_rows(Mat x, const int* ids, Mat out) override {
        each_row(x.rows, [&](int r, int) { std::copy_n(x.row(r), x.cols, out.row(ids[r])); });
    }
    void add(Mat x, Mat z, float scale, Mat y) override {
        each_row(x.rows, [&](int r, int) {
            for (int c = 0; c < x.cols; ++c) y.row(r)[c] = x.row(r)[c] + z.row(r)[c] * scale;
        });
    }
    void compare(Mat a, Mat b, int columns, Mat sums) override {
        each_row(a.rows,
                 [&](int r, int) { compare_row(a.row(r), b.row(r), columns, sums.row(r)); });
    }

    void flow_update(Mat x, Mat v, Mat schedule, const int* step, const Pull& pull,
                     Mat last) override {
        cpu::flow_update(x, v, schedule.row(*step), pull, last);
    }

    LinearInfo describe(const Linear* weight) const override {
        const PackedLinear* w = &packed(weight);
        LinearInfo d{w->name, w->in, w->gated ? 2 * w->out : w->out, 32, 0, "float32", "", 0};
        const char* op = "gemm_f32";
        switch (w->layout) {
            case Layout::f32: break;
            case Layout::bf16_columns:
            case Layout::bf16_words:
                d.bits = 16;
                d.compute = compute_name(compute_);
                op = w->layout == Layout::bf16_words ? "gemm_words" : "gemm_bf16";
                break;
            case Layout::codes8:
            case Layout::codes4:
                d.bits = w->layout == Layout::codes8 ? 8 : 4;
                d.group = std::min(4 * w->group_words, w->in);
                d.compute = "int8";
                op = w->layout == Layout::codes8 ? "dot8" : "dot4";
        }
        for (const KernelRow& row : kernel_table(kernels_))
            if (row.chosen && row.op == op) d.kernel = row.kernel;
        d.bytes = w->panels * w->panel_bytes();
        if (w->codes()) d.bytes += sizeof(float) * w->panels * w->groups() * kPanel;
        return d;
    }

    BackendInfo info() const override {
        const size_t scratch = (scratch_arena_ ? scratch_arena_->used_bytes() : 0) +
                               (rows_arena_ ? rows_arena_->used_bytes() : 0);
        BackendInfo info{kernels_.isa,
                         compute_,
                         pool_.size(),
                         weights_.used_bytes(),
                         buffers_.used_bytes() + scratch,
                         {}};
        for (const KernelRow& row : kernel_table(kernels_))
            if (row.chosen) info.kernels.push_back(row.kernel);
        return info;
    }

private:
    static const PackedLinear& packed(const Linear* w) {
        return *static_cast<const PackedLinear*>(w);
    }

    std::shared_ptr<const PackedImage> checked(std::shared_ptr<const PackedImage> image) const {
        if (image && (image->key().layout != layout_name(kernels_, operands_) ||
                      image->key().compute != compute_name(compute_)))
            fail(ErrorKind::checkpoint, "expected a packed image of %s in %s, got one of %s in %s",
                 compute_name(compute_), layout_name(kernels_, operands_).c_str(),
                 image->key().compute.c_str(), image->key().layout.c_str());
        return image;
    }

    const GemmKernels& attention_gemm() const {
        return operands_ == Storage::bf16 ? *kernels_.gemm_words : *kernels_.gemm_f32;
    }

    // What the rows must be for a weight: its rule is the backend's Compute, whatever x is.
    Storage operand_storage(const PackedLinear& w, Storage x) const {
        if (w.codes()) return Storage::i8;
        if (w.layout == Layout::f32) return x == Storage::bf16 ? Storage::f32 : x;
        return operands_ == Storage::f32 ? x : operands_;
    }

    Workplace place() { return {kernels_, pool_, scratch_}; }

    // The rows as integers, for a weight of codes.
    Mat quantized(Mat x) {
        if (size_t(x.rows) * coded_ld(x.cols) > row_words_)
            fail(ErrorKind::backend, "no room was reserved for %d rows of %d integers", x.rows,
                 x.cols);
        return quantize(place(), x, rows_);
    }
    // Room for the integers of every matrix that may be multiplied with codes: the largest of a
    // width that a weight of codes has. Told of widths (rows 0) and of matrices, in any order.
    void reserve_rows(int columns, int rows) {
        int& most = most_rows_[columns];
        bool& wanted = coded_widths_[columns];
        most = std::max(most, rows);
        wanted = wanted || rows == 0;
        const size_t words = wanted ? size_t(most) * coded_ld(columns) : 0;
        if (words <= row_words_) return;
        auto larger = std::make_unique<Arena>(words * sizeof(float) + 4096);
        rows_ = larger->floats(words);
        rows_arena_ = std::move(larger);
        row_words_ = words;
    }

    // At least `words` for every thread. All or nothing: without memory the old ones stay in use.
    void reserve_scratch(size_t words) {
        if (words <= scratch_words_) return;
        words = (words + 15) / 16 * 16;
        auto larger = std::make_unique<Arena>(scratch_.size() * (words * sizeof(float) + 4096));
        for (float*& scratch : scratch_) scratch = larger->floats(words);
        scratch_arena_ = std::move(larger);
        scratch_words_ = words;
    }

    template <class Body>
    void each_row(int rows, const Body& body) {
        cpu::each_row(pool_, rows, body);
    }

    void norm(Norm kernel, Mat x, const float* weight, const float* bias, float eps, Mat y) {
        if (y.storage != Storage::i8) {
            each_row(x.rows, [&](int r, int) {
                kernel(x.row(r), x.ld, 1, x.cols, weight, bias, eps, y.row(r), y.ld, y.storage);
            });
            return;
        }
        each_row(x.rows, [&](int r, int thread) {
            float* row = scratch_[static_cast<size_t>(thread)];
            kernel(x.row(r), x.ld, 1, x.cols, weight, bias, eps, row, 0, Storage::f32);
            kernels_.quantize_rows(row, 0, 1, x.cols, Storage::f32, y.row(r), y.ld);
        });
    }

    const Kernels kernels_;
    const Compute compute_;
    const Storage operands_;  // of weights in bfloat16
    WeightStore weights_;
    Arena buffers_;
    ThreadPool pool_;
    std::vector<std::unique_ptr<PackedLinear>> linears_;
    std::vector<std::unique_ptr<PackedKv>> kvs_;
    std::unique_ptr<Arena> scratch_arena_;
    std::vector<float*> scratch_;  // per thread: scores of a query block, or converted rows
    size_t scratch_words_ = 0;
    std::unique_ptr<Arena> rows_arena_;
    float* rows_ = nullptr;  // integers of the rows of one operand
    size_t row_words_ = 0;
    std::map<int, int> most_rows_;
    std::map<int, bool> coded_widths_;
};

}  // namespace

std::unique_ptr<Backend> make_backend(size_t weight_bytes, size_t buffer_bytes, int threads,
                                      const Kernels& kernels, Compute compute,
                                      std::shared_ptr<const PackedImage> image) {
    return std::make_unique<CpuBackend>(weight_bytes, buffer_bytes, threads, kernels, compute,
                                        std::move(image));
}

}  // namespace cpu

std::unique_ptr<Backend> make_cpu_backend(size_t weight_bytes, size_t buffer_bytes, int threads,
                                          const std::string& isa, Compute compute,
                                          std::shared_ptr<const PackedImage> image) {
    return cpu::make_backend(weight_bytes, buffer_bytes, threads, cpu::choose_kernels(isa), compute,
                             std::move(image));
}

std::string packed_layout(const std::string& isa, Compute compute) {
    const cpu::Kernels kernels = cpu::choose_kernels(isa);
    return cpu::layout_name(kernels, cpu::operands_of(kernels, compute));
}

}  // namespace smolvla

// The CUDA backend: the operations of ops/ops.h by the kernels that it chooses for them.
#include "cuda/backend.h"

#include <cstring>
#include <optional>

#include "cpu/rows.h"
#include "cuda/constants.h"
#include "cuda/converted_rows.h"
#include "cuda/current_gpu.h"
#include "cuda/graphs.h"
#include "cuda/kernels.h"
#include "cuda/memory.h"
#include "cuda/status.h"
#include "cuda/timeline.h"
#include "cuda/weights.h"

namespace smolvla {
namespace cuda {
namespace {

constexpr int kRowBucket = 16;  // rows of a stage are rounded up to this
constexpr size_t kWord = sizeof(float);
constexpr const char* kFrame = "a camera's frame";

struct DeviceKvStore : KvStore {
    DeviceKv kv;
};

class CudaBackend final : public Backend {
public:
    CudaBackend(Compute compute, size_t host_weight_bytes)
        : compute_(compute), constants_(host_weight_bytes) {
        const CudaStatus found = cuda_status();
        if (!found.error.empty()) fail(ErrorKind::backend, "device cuda: %s", found.error.c_str());
        check(cudaGetDevice(&device_), "asking for the GPU");
        facts_ = found.devices[size_t(device_)];
        check(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, device_),
              "asking the GPU what it is");
        timeline_.begin();
        stream_ = timeline_.stream();
        staging_ = std::make_unique<Staging>(stream_);
        graphs_ = std::make_unique<StageGraphs>(stream_);
        converted_ = std::make_unique<ConvertedRows>(buffers_, stream_);
        check(prepare_gemm_bf16(), "preparing kernels");
        check(prepare_gemm_i8(), "preparing kernels");
        check(prepare_gemm_w4(), "preparing kernels");
    }

    ~CudaBackend() override {
        current_.emplace(device_);
        cudaStreamSynchronize(stream_);
    }

    // --- while loading ---------------------------------------------------------------------------
    const Linear* load_linear(const TensorSource& source, const std::vector<std::string>& weights,
                              const std::vector<std::string>& biases, int in,
                              const std::vector<int>& out, bool gated) override {
        return keep(upload_linear(weights_, source, weights, biases, in, out, gated, exact()));
    }
    const Linear* make_linear(const std::string& name, const float* weight, int out,
                              int in) override {
        return keep(upload_matrix(weights_, name, weight, out, in));
    }

    float* make_weights(const std::string&, size_t count) override {
        return constants_.make(count);
    }
    float* make_host_weights(const std::string&, size_t count) override {
        return constants_.make_for_host(count);
    }
    bool weights_filled() const override { return false; }
    void finish_weights() override { constants_.upload(weights_); }
    void write_packed(const std::string&, const std::string&, const std::string&) override {
        fail(ErrorKind::backend, "device cuda keeps no packed cache: load without packed_cache");
    }

    KvStore* make_kv(int kv_heads, int head_dim, int capacity) override {
        auto store = std::make_unique<DeviceKvStore>();
        const size_t elements = size_t(kv_heads) * capacity * head_dim;
        const size_t bytes = (elements * (exact() ? 4 : 2) + 255) / 256 * 256;
        // One block: where there is no room for the second half, the first is not lost.
        char* both = static_cast<char*>(buffers_.allocate(2 * bytes, "keys and values"));
        store->kv = {both, both + bytes, kv_heads, head_dim, capacity, !exact()};
        if (!tensor_cores(store->kv)) {
            const cudaError_t status = prepare_attention(capacity, head_dim);
            if (status == cudaErrorInvalidValue) {
                cudaGetLastError();
                fail(ErrorKind::backend,
                     "attention in float32 keeps the scores of all keys in shared memory, and this "
                     "GPU has not enough for %d keys. Use smaller images, or compute bfloat16 with "
                     "heads of 64",
                     capacity);
            }
            check(status, "preparing attention");
        }
        kvs_.push_back(std::move(store));
        return kvs_.back().get();
    }
    float* make_buffer(size_t count) override {
        return static_cast<float*>(buffers_.allocate(count * kWord, "activations"));
    }
    Mat make_mat(int rows, int cols, Storage storage = Storage::f32) override {
        converted_->expect_rows(rows);
        return Backend::make_mat(rows, cols, storage);
    }
    Storage activation_storage(int unit) const override {
        return exact() || unit % 2 != 0 ? Storage::f32 : Storage::bf16_rows;
    }
    Mat operand(Mat activation, const Linear* reader) const override {
        if (device(reader).format == Format::i8) activation.storage = Storage::i8;
        return activation;
    }

    // --- while running ---------------------------------------------------------------------------
    void write(const float* values, Mat to) override {
        const size_t row = size_t(to.cols) * kWord, bytes = row * to.rows;
        void* staged = staging_->room(bytes);
        std::memcpy(staged, values, bytes);
        check(cudaMemcpy2DAsync(to.data, to.ld * kWord, staged, row, row, size_t(to.rows),
                                cudaMemcpyHostToDevice, stream_),
              "copying to the GPU");
    }
    void write(const int* values, size_t count, int* to) override {
        void* staged = staging_->room(count * sizeof(int));
        std::memcpy(staged, values, count * sizeof(int));
        check(cudaMemcpyAsync(to, staged, count * sizeof(int), cudaMemcpyHostToDevice, stream_),
              "copying to the GPU");
    }
    void read(Mat from, float* values) override {
        const size_t row = size_t(words_of(from.cols, from.storage)) * kWord;
        char* staged = static_cast<char*>(staging_->room(row * from.rows));
        check(cudaMemcpy2DAsync(staged, row, from.data, from.ld * kWord, row, size_t(from.rows),
                                cudaMemcpyDeviceToHost, stream_),
              "copying from the GPU");
        check(cudaStreamSynchronize(stream_), "computing");
        for (int r = 0; r < from.rows; ++r, staged += row) {
            float* to = values + size_t(r) * from.cols;
            if (from.storage == Storage::f32) {
                std::memcpy(to, staged, row);
                continue;
            }
            for (int c = 0; c < from.cols; ++c) {
                uint16_t bits;
                std::memcpy(&bits, staged + 2 * c, 2);
                to[c] = bf16_to_f32(bits);
            }
        }
        staging_->drained();
    }

    // The first time as it is: that loads the kernels and shows their errors by name.
    void stage(const StageKey& key, Body body) override {
        if (graphs_->replay(key)) return;
        body();
        record_stage(key, body);
    }
    void record_stage(const StageKey& key, Body body) override {
        if (graphs_->has(key)) return;
        converted_->reserve();
        graphs_->record(key, body);
    }
    void reserve_frames(int cameras, size_t bytes) override {
        if (!facts_.integrated) frame_.room(bytes, kFrame);
        staging_->reserve(size_t(cameras) * (bytes + 64) + (size_t{16} << 20));
    }
    // Another thread, or another library in this one, may have another current GPU.
    void enter() override {
        current_.emplace(device_);
        check(current_->status(), "choosing the GPU");
    }
    void leave() override { current_.reset(); }
    void mark(int moment) override { timeline_.mark(moment); }
    double between(int first, int second) const override {
        return timeline_.between(first, second);
    }
    int stage_rows(int rows) const override {
        return (rows + kRowBucket - 1) / kRowBucket * kRowBucket;
    }
    void advance(int* number) override { check(cuda::advance(number, stream_), "advance"); }

    void linear(Mat x, const Linear* weight, Mat y, const LinearOptions& o) override {
        const DeviceLinear& w = device(weight);
        Epilogue e;
        e.bias = o.bias ? here(o.bias) : w.bias;
        e.bias_row = o.bias_row;
        e.bias_ld = o.bias_ld;
        e.column_scale = here(o.column_scale);
        e.residual = here(o.residual.data);
        e.residual_ld = o.residual.ld;
        e.scale = o.scale;
        e.activation = o.activation;
        e.gated = w.gated;
        e.y = y;
        cudaError_t status = cudaSuccess;
        switch (w.format) {
            case Format::f32:
                status = gemm_f32(converted_->as_f32(x), w.data, false, w.columns, w.in, e,
                                  processors_, stream_);
                break;
            case Format::bf16:
                status = exact() ? gemm_f32(converted_->as_f32(x), w.data, true, w.columns, w.in, e,
                                            processors_, stream_)
                                 : gemm_bf16(converted_->as_bf16(x, w.in), w.data, w.ld, w.columns,
                                             w.in, e, processors_, stream_);
                break;
            case Format::i8:
                status =
                    gemm_i8(converted_->as_i8(x), w.data, w.ld, static_cast<const float*>(w.scales),
                            w.columns, w.in, e, processors_, stream_);
                break;
            case Format::i4:
                status = gemm_w4(converted_->as_bf16(x, (w.in + 63) / 64 * 64),
                                 static_cast<const uint4*>(w.data),
                                 static_cast<const uint32_t*>(w.scales), w.group, w.columns, w.in,
                                 e, processors_, stream_);
        }
        check(status, w.name.c_str());
    }

    void layer_norm(Mat x, const float* weight, const float* bias, float eps, Mat y) override {
        check(norm(x, here(weight), here(bias), true, eps, y, stream_), "layer_norm");
    }
    void rms_norm(Mat x, const float* weight, float eps, Mat y) override {
        check(norm(x, here(weight), nullptr, false, eps, y, stream_), "rms_norm");
    }
    void rope(Mat x, int heads, Mat cosine, Mat sine, const int* first) override {
        check(cuda::rope(x, heads, cosine, sine, first, stream_), "rope");
    }
    void store_kv(Mat keys, Mat values, KvStore* kv, const int* first) override {
        check(cuda::store_kv(keys, values, static_cast<DeviceKvStore*>(kv)->kv, first, stream_),
              "store_kv");
    }
    void scatter_kv(Mat keys, Mat values, KvStore* kv, const int* positions) override {
        check(
            cuda::scatter_kv(keys, values, static_cast<DeviceKvStore*>(kv)->kv, positions, stream_),
            "scatter_kv");
    }
    void rope_store(Mat q, int heads, Mat keys, Mat values, Mat cosine, Mat sine, const int* first,
                    KvStore* kv) override {
        check(cuda::rope_store(q, heads, keys, values, cosine, sine, first,
                               static_cast<DeviceKvStore*>(kv)->kv, stream_),
              "rope_store");
    }
    void attention(Mat q, const KvStore* store, const AttentionShape& s, Mat out) override {
        const DeviceKv& kv = static_cast<const DeviceKvStore*>(store)->kv;
        const bool fast = tensor_cores(kv) && out.storage == Storage::bf16_rows;
        check(fast ? attention_bf16(q, kv, s.heads, s.lengths, out, processors_, stream_)
                   : attention_f32(q, kv, s.heads, s.lengths, out, stream_),
              "attention");
    }
    void attention_mass(Mat q, const KvStore* store, const AttentionShape& s, bool add,
                        Mat mass) override {
        const DeviceKv& kv = static_cast<const DeviceKvStore*>(store)->kv;
        check(cuda::attention_mass(q, kv, s.heads, s.lengths, add, mass, stream_),
              "attention_mass");
    }

    void letterbox(const Frame& frame, float* pixels, int height, int width) override {
        const size_t bytes = size_t(frame.height) * frame.width * 3 * (frame.is_u8 ? 1 : 4);
        void* staged = staging_->room(bytes);
        std::memcpy(staged, frame.data, bytes);
        Frame there = frame;
        if (facts_.integrated) {  // it reads the host's memory where it is
            void* mapped = nullptr;
            check(cudaHostGetDevicePointer(&mapped, staged, 0), "showing a frame to the GPU");
            there.data = mapped;
        } else {
            void* copied = frame_.room(bytes, kFrame);
            check(cudaMemcpyAsync(copied, staged, bytes, cudaMemcpyHostToDevice, stream_),
                  "copying a frame to the GPU");
            there.data = copied;
        }
        check(cuda::letterbox(there, pixels, height, width, stream_), "letterbox");
    }
    void patchify(const float* pixels, int height, int width, int patch, const int* ids,
                  Mat rows) override {
        check(cuda::patchify(pixels, height, width, patch, ids, rows, stream_), "patchify");
    }
    void block_change(const float* pixels, const float* reference, int height, int width, int patch,
                      int scale, Mat change) override {
        check(cuda::block_change(pixels, reference, height, width, patch, scale, change.data,
                                 stream_),
              "block_change");
    }
    void copy_blocks(const float* pixels, int height, int width, int side, const int* ids,
                     int count, float* to) override {
        check(cuda::copy_blocks(pixels, height, width, side, ids, count, to, stream_),
              "copy_blocks");
    }
    void pixel_shuffle(Mat x, int side, int scale, Mat out) override {
        check(cuda::pixel_shuffle(x, side, scale, out, stream_), "pixel_shuffle");
    }
    // The table stays where it is: a few rows of it cross over.
    void gather_rows(const Table& table, const int* ids, int count, float scale, Mat out) override {
        gathered_.resize(size_t(count) * out.cols);
        cpu::gather_rows(table, ids, count, scale, {gathered_.data(), count, out.cols, out.cols});
        write(gathered_.data(), out);
    }
    void copy(Mat x, float scale, Mat y) override {
        check(copy_rows(x, scale, y, y.cols, stream_), "copy");
    }
    void pick_rows(Mat x, const int* ids, Mat out) override {
        x.data = const_cast<float*>(here(x.data));  // a constant, where positions are picked
        check(cuda::pick_rows(x, ids, out, stream_), "pick_rows");
    }
    void put_rows(Mat x, const int* ids, Mat out) override {
        check(cuda::put_rows(x, ids, out, stream_), "put_rows");
    }
    void add(Mat x, Mat z, float scale, Mat y) override {
        check(add_rows(x, z, scale, y, stream_), "add");
    }
    void compare(Mat a, Mat b, int columns, Mat sums) override {
        check(compare_rows(a, b, columns, sums, stream_), "compare");
    }
    void flow_update(Mat x, Mat v, Mat schedule, const int* step, const Pull& pull,
                     Mat last) override {
        check(cuda::flow_update(x, v, schedule, step, pull, last, stream_), "flow_update");
    }

    LinearInfo describe(const Linear* weight) const override {
        return cuda::describe(device(weight), exact());
    }

    BackendInfo info() const override {
        return {"",
                compute_,
                0,
                weights_.used_bytes(),
                buffers_.used_bytes(),
                {"gemm_f32", "gemm_bf16", "gemm_i8", "gemm_w4"},
                {facts_.name, facts_.sm, facts_.memory_bytes, staging_->bytes(), graphs_->count()}};
    }

private:
    bool exact() const { return compute_ == Compute::float32; }
    static bool tensor_cores(const DeviceKv& kv) { return kv.bf16 && kv.head_dim == 64; }
    static const DeviceLinear& device(const Linear* w) {
        return *static_cast<const DeviceLinear*>(w);
    }
    const Linear* keep(DeviceLinear made) {
        converted_->expect_columns(made.in);
        linears_.push_back(std::make_unique<DeviceLinear>(std::move(made)));
        return linears_.back().get();
    }

    const float* here(const float* p) const { return constants_.on_device(p); }

    std::optional<CurrentGpu> current_;  // first: until all else is given back
    const Compute compute_;
    int device_ = 0, processors_ = 1;
    CudaDevice facts_;
    Timeline timeline_;
    cudaStream_t stream_ = nullptr;  // of the timeline
    Constants constants_;
    DeviceMemory weights_, buffers_;
    std::unique_ptr<Staging> staging_;
    std::vector<std::unique_ptr<DeviceLinear>> linears_;
    std::vector<std::unique_ptr<DeviceKvStore>> kvs_;
    std::unique_ptr<StageGraphs> graphs_;
    std::unique_ptr<ConvertedRows> converted_;
    std::vector<float> gathered_;
    Scratch frame_{buffers_};
};

}  // namespace
}  // namespace cuda

std::unique_ptr<Backend> make_cuda_backend(Compute compute, size_t host_weight_bytes) {
    return std::make_unique<cuda::CudaBackend>(compute, host_weight_bytes);
}

}  // namespace smolvla

#include "ops/timed.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "runtime/error.h"

namespace smolvla {
namespace {

constexpr size_t kMostRecords = size_t{1} << 24;

int64_t now_ns() {
    using namespace std::chrono;
    return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

int64_t bytes_of(Mat x) {
    // Storage::rounded moves whole floats.
    return int64_t{4} * x.rows * words_of(x.cols, x.storage);
}

TimedRecord record_of(const char* kind, Mat x, int64_t bytes) {
    TimedRecord r;
    r.kind = kind;
    r.rows = x.rows;
    r.in = r.out = x.cols;
    r.bytes = bytes;
    return r;
}

}  // namespace

TimedBackend::TimedBackend(std::unique_ptr<Backend> backend)
    : backend_(std::move(backend)),
      compute_(backend_->info().compute),
      kv_element_bytes_(backend_->activation_storage(2) == Storage::bf16 ? 2 : 4) {}

void TimedBackend::start(size_t capacity) {
    if (backend_->info().gpu.sm != 0)
        fail(ErrorKind::backend,
             "recording operations: expected device cpu, got cuda, where a stage is one graph. Use "
             "the timings of a chunk for its stages and NVIDIA's Nsight Systems for kernels (nsys "
             "profile --cuda-graph-trace=node smolvla-edge run ...), or load with device cpu");
    if (capacity < 1 || capacity > kMostRecords)
        fail(ErrorKind::input, "capacity: expected 1 to %zu records, got %zu", kMostRecords,
             capacity);
    records_.assign(capacity, {});
    capacity_ = capacity;
    count_ = 0;
}

std::vector<TimedRecord> TimedBackend::take(size_t* overwritten) {
    const size_t kept = std::min(count_, capacity_);
    *overwritten = count_ - kept;
    if (*overwritten > 0)  // the oldest one is not at the beginning
        std::rotate(records_.begin(), records_.begin() + ptrdiff_t(count_ % capacity_),
                    records_.end());
    records_.resize(kept);
    capacity_ = count_ = 0;
    return std::exchange(records_, {});
}

void TimedBackend::put(const TimedRecord& record) {
    if (recording()) records_[count_++ % capacity_] = record;  // a stage may outlive the recording
}

template <class Body>
void TimedBackend::timed(TimedRecord record, const Body& body) {
    record.start_ns = now_ns();
    body();
    record.end_ns = now_ns();
    put(record);
}

TimedBackend::Stage::Stage(TimedBackend& ops, const char* kind, int index) : ops_(ops) {
    if (!ops_.recording()) return;
    record_.kind = kind;
    record_.stage = true;
    record_.index = index;
    record_.start_ns = now_ns();
}

TimedBackend::Stage::~Stage() {
    if (!record_.stage) return;
    record_.end_ns = now_ns();
    ops_.put(record_);
}

const Linear* TimedBackend::load_linear(const TensorSource& source,
                                        const std::vector<std::string>& weights,
                                        const std::vector<std::string>& biases, int in,
                                        const std::vector<int>& out, bool gated) {
    return noted(backend_->load_linear(source, weights, biases, in, out, gated));
}

const Linear* TimedBackend::make_linear(const std::string& name, const float* weight, int out,
                                        int in) {
    return noted(backend_->make_linear(name, weight, out, in));
}

const Linear* TimedBackend::noted(const Linear* made) {
    weights_.emplace(made, backend_->describe(made));
    loaded_.push_back(made);
    return made;
}

std::vector<LinearInfo> TimedBackend::linears() const {
    std::vector<LinearInfo> all;
    for (const Linear* w : loaded_) all.push_back(weights_.at(w));
    return all;
}

KvStore* TimedBackend::make_kv(int kv_heads, int head_dim, int capacity) {
    KvStore* made = backend_->make_kv(kv_heads, head_dim, capacity);
    kv_widths_.emplace(made, kv_heads * head_dim);
    return made;
}

void TimedBackend::linear(Mat x, const Linear* w, Mat y, const LinearOptions& o) {
    if (!recording()) return backend_->linear(x, w, y, o);
    const LinearInfo& weight = weights_.at(w);
    const int64_t elements = int64_t{weight.in} * weight.columns;
    const int64_t moved = bytes_of(x) + bytes_of(y) + bytes_of(o.residual);
    int64_t held = elements * weight.bits / 8;
    if (weight.group > 0)
        held += 4 * int64_t{weight.columns} * ((weight.in - 1) / weight.group + 1);
    TimedRecord r = record_of("linear", y, moved + held);
    r.weight = weight.name.c_str();
    r.in = weight.in;
    r.flops = 2 * elements * x.rows;
    r.compute = weight.compute.c_str();
    timed(r, [&] { backend_->linear(x, w, y, o); });
}

void TimedBackend::layer_norm(Mat x, const float* weight, const float* bias, float eps, Mat y) {
    if (!recording()) return backend_->layer_norm(x, weight, bias, eps, y);
    timed(record_of("layer_norm", x, bytes_of(x) + bytes_of(y)),
          [&] { backend_->layer_norm(x, weight, bias, eps, y); });
}

void TimedBackend::rms_norm(Mat x, const float* weight, float eps, Mat y) {
    if (!recording()) return backend_->rms_norm(x, weight, eps, y);
    timed(record_of("rms_norm", x, bytes_of(x) + bytes_of(y)),
          [&] { backend_->rms_norm(x, weight, eps, y); });
}

void TimedBackend::rope(Mat x, int heads, Mat cosine, Mat sine, const int* first) {
    if (!recording()) return backend_->rope(x, heads, cosine, sine, first);
    TimedRecord r = record_of("rope", x, 2 * bytes_of(x));
    r.heads = heads;
    timed(r, [&] { backend_->rope(x, heads, cosine, sine, first); });
}

void TimedBackend::rope_store(Mat q, int heads, Mat keys, Mat values, Mat cosine, Mat sine,
                              const int* first, KvStore* kv) {
    if (recording())  // each of its operations
        return Backend::rope_store(q, heads, keys, values, cosine, sine, first, kv);
    backend_->rope_store(q, heads, keys, values, cosine, sine, first, kv);
}

void TimedBackend::store_kv(Mat keys, Mat values, KvStore* kv, const int* first) {
    if (!recording()) return backend_->store_kv(keys, values, kv, first);
    const int64_t written = int64_t{2} * keys.rows * keys.cols * kv_element_bytes_;
    timed(record_of("store_kv", keys, bytes_of(keys) + bytes_of(values) + written),
          [&] { backend_->store_kv(keys, values, kv, first); });
}

void TimedBackend::scatter_kv(Mat keys, Mat values, KvStore* kv, const int* positions) {
    if (!recording()) return backend_->scatter_kv(keys, values, kv, positions);
    const int64_t written = int64_t{2} * keys.rows * keys.cols * kv_element_bytes_;
    timed(record_of("scatter_kv", keys, bytes_of(keys) + bytes_of(values) + written),
          [&] { backend_->scatter_kv(keys, values, kv, positions); });
}

// `sides`: keys, or keys and values.
TimedRecord TimedBackend::attention_record(const char* kind, Mat q, const KvStore* kv,
                                           const AttentionShape& s, Mat out, int sides) const {
    int64_t products = 0;
    int longest = 0;
    for (int row = 0; row < q.rows; ++row) {
        products += s.lengths[row];
        longest = std::max(longest, s.lengths[row]);
    }
    const int64_t read = int64_t{sides} * longest * kv_widths_.at(kv) * kv_element_bytes_;
    TimedRecord r = record_of(kind, q, bytes_of(q) + bytes_of(out) + read);
    r.in = longest;
    r.heads = s.heads;
    r.flops = 2 * sides * products * s.heads * s.head_dim;  // scores, and their sum over values
    r.compute = compute_name(compute_);
    return r;
}

void TimedBackend::attention(Mat q, const KvStore* kv, const AttentionShape& s, Mat out) {
    if (!recording()) return backend_->attention(q, kv, s, out);
    timed(attention_record("attention", q, kv, s, out, 2),
          [&] { backend_->attention(q, kv, s, out); });
}

void TimedBackend::attention_mass(Mat q, const KvStore* kv, const AttentionShape& s, bool add,
                                  Mat mass) {
    if (!recording()) return backend_->attention_mass(q, kv, s, add, mass);
    timed(attention_record("attention_mass", q, kv, s, mass, 1),
          [&] { backend_->attention_mass(q, kv, s, add, mass); });
}

void TimedBackend::letterbox(const Frame& frame, float* pixels, int height, int width) {
    if (!recording()) return backend_->letterbox(frame, pixels, height, width);
    const int64_t read = int64_t{3} * frame.height * frame.width * (frame.is_u8 ? 1 : 4);
    TimedRecord r;
    r.kind = "letterbox";
    r.rows = height;
    r.in = r.out = width;
    r.bytes = read + int64_t{12} * height * width;
    timed(r, [&] { backend_->letterbox(frame, pixels, height, width); });
}

void TimedBackend::patchify(const float* pixels, int height, int width, int patch, const int* ids,
                            Mat rows) {
    if (!recording()) return backend_->patchify(pixels, height, width, patch, ids, rows);
    timed(record_of("patchify", rows, int64_t{4} * rows.rows * rows.cols + bytes_of(rows)),
          [&] { backend_->patchify(pixels, height, width, patch, ids, rows); });
}

void TimedBackend::block_change(const float* pixels, const float* reference, int height, int width,
                                int patch, int scale, Mat change) {
    if (!recording())
        return backend_->block_change(pixels, reference, height, width, patch, scale, change);
    timed(record_of("block_change", change, int64_t{24} * height * width),
          [&] { backend_->block_change(pixels, reference, height, width, patch, scale, change); });
}

void TimedBackend::copy_blocks(const float* pixels, int height, int width, int side, const int* ids,
                               int count, float* to) {
    if (!recording()) return backend_->copy_blocks(pixels, height, width, side, ids, count, to);
    TimedRecord r;
    r.kind = "copy_blocks";
    r.rows = count;
    r.in = r.out = 3 * side * side;
    r.bytes = int64_t{8} * r.rows * r.in;
    timed(r, [&] { backend_->copy_blocks(pixels, height, width, side, ids, count, to); });
}

void TimedBackend::pixel_shuffle(Mat x, int side, int scale, Mat out) {
    if (!recording()) return backend_->pixel_shuffle(x, side, scale, out);
    timed(record_of("pixel_shuffle", out, bytes_of(x) + bytes_of(out)),
          [&] { backend_->pixel_shuffle(x, side, scale, out); });
}

void TimedBackend::gather_rows(const Table& table, const int* ids, int count, float scale,
                               Mat out) {
    if (!recording()) return backend_->gather_rows(table, ids, count, scale, out);
    const int64_t read = int64_t{count} * out.cols * int64_t(dtype_bytes(table.dtype));
    timed(record_of("gather_rows", out, read + bytes_of(out)),
          [&] { backend_->gather_rows(table, ids, count, scale, out); });
}

void TimedBackend::copy(Mat x, float scale, Mat y) {
    if (!recording()) return backend_->copy(x, scale, y);
    timed(record_of("copy", x, bytes_of(x) + bytes_of(y)), [&] { backend_->copy(x, scale, y); });
}

void TimedBackend::pick_rows(Mat x, const int* ids, Mat out) {
    if (!recording()) return backend_->pick_rows(x, ids, out);
    timed(record_of("pick_rows", out, 2 * bytes_of(out)),
          [&] { backend_->pick_rows(x, ids, out); });
}

void TimedBackend::put_rows(Mat x, const int* ids, Mat out) {
    if (!recording()) return backend_->put_rows(x, ids, out);
    timed(record_of("put_rows", x, 2 * bytes_of(x)), [&] { backend_->put_rows(x, ids, out); });
}

void TimedBackend::add(Mat x, Mat z, float scale, Mat y) {
    if (!recording()) return backend_->add(x, z, scale, y);
    timed(record_of("add", x, bytes_of(x) + bytes_of(z) + bytes_of(y)),
          [&] { backend_->add(x, z, scale, y); });
}

void TimedBackend::compare(Mat a, Mat b, int columns, Mat sums) {
    if (!recording()) return backend_->compare(a, b, columns, sums);
    timed(record_of("compare", a, bytes_of(a) + bytes_of(b)),
          [&] { backend_->compare(a, b, columns, sums); });
}

void TimedBackend::flow_update(Mat x, Mat v, Mat schedule, const int* step, const Pull& pull,
                               Mat last) {
    if (!recording()) return backend_->flow_update(x, v, schedule, step, pull, last);
    const int64_t moved =
        2 * bytes_of(x) + bytes_of(v) + bytes_of(pull.previous) + 2 * bytes_of(last);
    timed(record_of("flow_update", x, moved),
          [&] { backend_->flow_update(x, v, schedule, step, pull, last); });
}

}  // namespace smolvla

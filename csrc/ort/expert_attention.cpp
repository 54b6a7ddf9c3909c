#include <vector>

#include "cpu/attention.h"
#include "ort/columns.h"
#include "ort/kernels.h"
#include "ort/session_workers.h"

namespace smolvla::ort {
namespace {

constexpr int kMostColumns = 1 << 16;

// The chosen columns of keys and values, one after the other.
void store(Workers& workers, Mat keys, Mat values, const std::vector<int>& columns, PackedKv& kv) {
    const int count = static_cast<int>(columns.size());
    for (int at = 0, n = 0; at < count; at += n) {
        n = 1;
        while (at + n < count && columns[size_t(at + n)] == columns[size_t(at)] + n) ++n;
        const int from = columns[size_t(at)];
        cpu::run_store_kv(workers, keys.below(from, n), values.below(from, n), kv, at);
    }
}

}  // namespace

ExpertAttention::ExpertAttention(const Api& api, const KernelInfo* info)
    : api_(api),
      heads_(attribute(api, info, "heads")),
      kv_heads_(attribute(api, info, "kv_heads")) {
    if (heads_ % kv_heads_ != 0)
        fail(ErrorKind::input,
             "ExpertAttention: heads: expected a multiple of kv_heads = %d, got %d", kv_heads_,
             heads_);
}

void ExpertAttention::compute(KernelContext* context) const {
    const Tensor query = input(api_, context, 0), key = input(api_, context, 1);
    const Tensor value = input(api_, context, 2), mask = input(api_, context, 3);
    query.expect("ExpertAttention: query", kFloat, {1, -1, -1});
    const int rows = query.dim(1), width = query.dim(2), dim = width / heads_;
    if (dim < 1 || dim * heads_ != width || rows > kMostRows)
        fail(ErrorKind::input,
             "ExpertAttention: query: expected [1, at most %d, a multiple of %d heads], got %s",
             kMostRows, heads_, query.shape().c_str());
    key.expect("ExpertAttention: key", kFloat, {1, -1, int64_t(kv_heads_) * dim});
    const int columns = key.dim(1);
    if (columns > kMostColumns)
        fail(ErrorKind::input, "ExpertAttention: key: expected at most %d columns, got %d",
             kMostColumns, columns);
    value.expect("ExpertAttention: value", kFloat, {1, columns, int64_t(kv_heads_) * dim});
    mask.expect("ExpertAttention: mask", kBool, {rows, columns});
    float* out = output(api_, context, 0, query);

    const std::vector<Columns> parts =
        readable(static_cast<const uint8_t*>(mask.data), rows, columns);
    if (parts.empty()) return;
    PackedKv kv;
    kv.kv_heads = kv_heads_;
    kv.head_dim = dim;
    kv.capacity = cpu::ceil_div(columns, cpu::kPanel) * cpu::kPanel;

    const cpu::GemmKernels& gemm = *cpu_kernels().gemm_f32;
    SessionWorkers workers(api_, context, most_threads());
    const size_t words = cpu::attention_words(gemm, kv);
    Scratch scratch(Scratch::room(kv.key_words()) + Scratch::room(kv.value_words()) +
                    size_t(workers.size()) * Scratch::room(words));
    kv.keys = scratch.floats(kv.key_words());
    kv.values = scratch.floats(kv.value_words());
    std::vector<float*> of_threads(static_cast<size_t>(workers.size()));
    for (float*& room : of_threads) room = scratch.floats(words);
    const cpu::Workplace place{cpu_kernels(), workers, of_threads};

    const int kv_width = kv_heads_ * dim;
    const Mat q{static_cast<float*>(query.data), rows, width, width};
    const Mat k{static_cast<float*>(key.data), columns, kv_width, kv_width};
    const Mat v{static_cast<float*>(value.data), columns, kv_width, kv_width};
    const Mat y{out, rows, width, width};
    for (const Columns& part : parts) {
        store(workers, k, v, part.columns, kv);
        const int count = static_cast<int>(part.lengths.size());
        cpu::run_attention(place, gemm, q.below(part.first, count), kv,
                           {heads_, kv_heads_, dim, part.lengths.data()},
                           y.below(part.first, count));
    }
}

}  // namespace smolvla::ort

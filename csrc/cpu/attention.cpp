#include "cpu/attention.h"

#include <algorithm>
#include <cmath>

namespace smolvla::cpu {
namespace {

constexpr int kQueryTiles = 4;  // query rows per item, in tiles

int query_block(const GemmKernels& gemm) { return kQueryTiles * gemm.max_rows; }
ptrdiff_t score_ld(const PackedKv& kv) { return kv.capacity + 16; }

// Rows of one head, and what of the keys they see.
struct HeadRows {
    Mat queries;
    const int* lengths;
    int head;
    int keys() const { return *std::max_element(lengths, lengths + queries.rows); }
    int padded() const { return ceil_div(keys(), kPanel) * kPanel; }
};

HeadRows head_rows(Mat q, const AttentionShape& s, int head, int first, int rows) {
    return {q.below(first, rows).columns(head * s.head_dim, s.head_dim), s.lengths + first, head};
}

// q k^T to `scores`, at most query_block rows of them; behind them is room for converted queries.
void score(const Workplace& place, const GemmKernels& gemm, const HeadRows& of, const PackedKv& kv,
           const AttentionShape& s, float* scores) {
    const ptrdiff_t ld = score_ld(kv);
    const int rows = of.queries.rows, tiles = ceil_div(rows, gemm.max_rows), keys = of.keys();
    Mat queries = of.queries;
    if (queries.storage != kv.storage)
        queries = convert(place.kernels, queries, kv.storage, scores + query_block(gemm) * ld);
    for (int k = 0; k < keys; k += kPanel)
        for (int t = 0; t < tiles; ++t) {
            const int r = part_start(rows, tiles, t);
            gemm.tile[part_start(rows, tiles, t + 1) - r](
                queries.row(r), queries.ld, kv.key_panel(of.head / (s.heads / s.kv_heads), k),
                kv.key_depth(), scores + r * ld + k, ld, nullptr);
        }
}

float softmax_scale(const AttentionShape& s) {
    return 1.0f / std::sqrt(static_cast<float>(s.head_dim));
}

}  // namespace

size_t attention_words(const GemmKernels& gemm, const PackedKv& kv) {
    return size_t(query_block(gemm)) * (score_ld(kv) + operand_ld(kv.head_dim));
}

void run_store_kv(Workers& workers, Mat keys, Mat values, PackedKv& kv, int first) {
    const int last = first + keys.rows;
    const int first_panel = first / kPanel, panels = ceil_div(last, kPanel) - first_panel;
    workers.run(kv.kv_heads * panels, [&](int item, int) {
        const int head = item / panels;
        const int start = (first_panel + item % panels) * kPanel;
        const int from = std::max(first, start), to = std::min(last, start + kPanel);
        pack_keys(kv, head, keys.below(from - first, to - from), from);
        pack_values(kv, head, values.below(from - first, to - from), from);
    });
}

// One item: a block of query rows of one head. Scores against all keys fit the L2 (56 x 1024), so
// the softmax needs no running maximum and a row's result does not depend on its block.
void run_attention(const Workplace& place, const GemmKernels& gemm, Mat q, const PackedKv& kv,
                   const AttentionShape& s, Mat out) {
    const Kernels& kernels = place.kernels;
    const int block = query_block(gemm);
    const float scale = softmax_scale(s);
    const int blocks = std::max(ceil_div(q.rows, block),
                                std::min(q.rows, ceil_div(16 * place.workers.size(), s.heads)));
    const bool exact = kv.storage == Storage::f32;
    place.workers.run(s.heads * blocks, [&](int item, int thread) {
        const int head = item / blocks, kv_head = head / (s.heads / s.kv_heads);
        const int first = part_start(q.rows, blocks, item % blocks);
        const int rows = part_start(q.rows, blocks, item % blocks + 1) - first;
        const HeadRows of = head_rows(q, s, head, first, rows);
        const int keys = of.keys(), tiles = ceil_div(rows, gemm.max_rows);
        const ptrdiff_t ld = score_ld(kv);
        float* scores = place.scratch[static_cast<size_t>(thread)];
        score(place, gemm, of, kv, s, scores);
        float inverse_sum[kMaxTileRows * kQueryTiles];
        if (exact)
            kernels.softmax(scores, ld, rows, of.lengths, of.padded(), scale, inverse_sum);
        else
            kernels.softmax_bf16(scores, ld, rows, of.lengths, of.padded(), scale, inverse_sum,
                                 kv.storage);
        alignas(64) float tile[kMaxTileRows * kPanel];
        for (int t = 0; t < tiles; ++t) {
            const int r = part_start(rows, tiles, t);
            const int height = part_start(rows, tiles, t + 1) - r;
            for (int d = 0; d < s.head_dim; d += kPanel) {
                gemm.tile[height](scores + r * ld, ld, kv.value_panel(kv_head, d / kPanel),
                                  kv.value_depth(keys), tile, kPanel, nullptr);
                kernels.scale_rows(tile, kPanel, height, std::min(kPanel, s.head_dim - d),
                                   inverse_sum + r, out.at(first + r, head * s.head_dim + d),
                                   out.ld, out.storage);
            }
        }
    });
}

// One item: a head. Weights stay float32, whatever the keys are: they are summed, not multiplied.
void run_attention_mass(const Workplace& place, const GemmKernels& gemm, Mat q, const PackedKv& kv,
                        const AttentionShape& s, bool add, Mat mass) {
    const int block = query_block(gemm);
    const ptrdiff_t ld = score_ld(kv);
    place.workers.run(s.heads, [&](int head, int thread) {
        float* sums = mass.row(head);
        float* scores = place.scratch[static_cast<size_t>(thread)];
        if (!add) std::fill_n(sums, mass.cols, 0.0f);
        for (int first = 0; first < q.rows; first += block) {
            const int rows = std::min(block, q.rows - first);
            const HeadRows of = head_rows(q, s, head, first, rows);
            float inverse_sum[kMaxTileRows * kQueryTiles];
            score(place, gemm, of, kv, s, scores);
            place.kernels.softmax(scores, ld, rows, of.lengths, of.padded(), softmax_scale(s),
                                  inverse_sum);
            for (int r = 0; r < rows; ++r)
                for (int key = 0; key < of.lengths[r]; ++key)
                    sums[key] += scores[r * ld + key] * inverse_sum[r];
        }
    });
}

}  // namespace smolvla::cpu

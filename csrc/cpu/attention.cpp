#include "cpu/attention.h"

#include <algorithm>
#include <cmath>

namespace smolvla::cpu {
namespace {

constexpr int kQueryTiles = 4;  // query rows per item, in tiles

int query_block(const GemmKernels& gemm) { return kQueryTiles * gemm.max_rows; }
ptrdiff_t score_ld(const PackedKv& kv) { return kv.capacity + 16; }

}  // namespace

size_t attention_words(const GemmKernels& gemm, const PackedKv& kv) {
    return size_t(query_block(gemm)) * (score_ld(kv) + operand_ld(kv.head_dim));
}

// One item: a block of query rows of one head. Scores against all keys fit the L2 (56 x 1024), so
// the softmax needs no running maximum and a row's result does not depend on its block.
void run_attention(const Workplace& place, const GemmKernels& gemm, Mat q, const PackedKv& kv,
                   const AttentionShape& s, Mat out) {
    const Kernels& kernels = place.kernels;
    const int most = gemm.max_rows, group = s.heads / s.kv_heads, block = query_block(gemm);
    const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    const int blocks = std::max(ceil_div(q.rows, block),
                                std::min(q.rows, ceil_div(16 * place.pool.size(), s.heads)));
    const bool exact = kv.storage == Storage::f32;
    place.pool.run(s.heads * blocks, [&](int item, int thread) {
        const int head = item / blocks, kv_head = head / group;
        const int first = part_start(q.rows, blocks, item % blocks);
        const int rows = part_start(q.rows, blocks, item % blocks + 1) - first;
        const int* lengths = s.lengths + first;
        const int keys = *std::max_element(lengths, lengths + rows);
        const int tiles = ceil_div(rows, most), padded = ceil_div(keys, kPanel) * kPanel;
        const ptrdiff_t ld = score_ld(kv);
        float* scores = place.scratch[static_cast<size_t>(thread)];
        Mat queries = q.below(first, rows).columns(head * s.head_dim, s.head_dim);
        if (q.storage != kv.storage)
            queries = convert(kernels, queries, kv.storage, scores + block * ld);
        for (int k = 0; k < keys; k += kPanel)
            for (int t = 0; t < tiles; ++t) {
                const int r = part_start(rows, tiles, t);
                gemm.tile[part_start(rows, tiles, t + 1) - r](
                    queries.row(r), queries.ld, kv.key_panel(kv_head, k), kv.key_depth(),
                    scores + r * ld + k, ld, nullptr);
            }
        float inverse_sum[kMaxTileRows * kQueryTiles];
        if (exact)
            kernels.softmax(scores, ld, rows, lengths, padded, scale, inverse_sum);
        else
            kernels.softmax_bf16(scores, ld, rows, lengths, padded, scale, inverse_sum, kv.storage);
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

}  // namespace smolvla::cpu

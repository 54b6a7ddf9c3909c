// Backend::store_kv and attention: softmax(q k^T / sqrt(head_dim)) v over the first lengths[r]
// keys.
#include <algorithm>

#include "operations.h"

namespace smolvla {
namespace {

enum class Mask { all, causal, ragged };

struct Case {
    int rows, keys, heads, kv_heads, dim;
    Mask mask;
    Compute compute;
    Storage out;

    std::string name() const {
        char text[160];
        std::snprintf(text, sizeof text,
                      "attention %d x %d, %d heads on %d of %d, mask %d, storage %d", rows, keys,
                      heads, kv_heads, dim, int(mask), int(out));
        return text;
    }
};

int length_of(const Case& c, int row) {
    if (c.mask == Mask::all) return c.keys;
    if (c.mask == Mask::causal) return std::clamp(c.keys - c.rows + row + 1, 1, c.keys);
    return row * 7 % c.keys + 1;
}

// A score is off by `moved`, so a weight by twice that, relatively. In bfloat16 a weight is rounded
// once and its exponential is the coarse one; the sum of weights is that of the unrounded ones.
std::vector<Bound> expected(const Case& c, const Mat& q, const Mat& k, const Mat& v) {
    const bool rounds = c.compute == Compute::bfloat16;
    const auto operand = [&](float x) { return double(rounds ? to_bf16(x) : x); };
    std::vector<Bound> bounds(size_t(c.rows) * q.cols, {NAN, 0});
    const double scale = 1 / std::sqrt(double(c.dim));
    std::vector<double> p(static_cast<size_t>(c.keys));
    for (int r = 0; r < c.rows; ++r) {
        if (c.rows > 16 && r > 2 && r < c.rows - 2 && r % 37 != 0) continue;
        for (int h = 0; h < c.heads; ++h) {
            const int length = length_of(c, r), kv_at = h / (c.heads / c.kv_heads) * c.dim;
            double top = -INFINITY, moved = 0, spread = 0, total = 0;
            for (int key = 0; key < length; ++key) {
                double sum = 0, size = 0;
                for (int d = 0; d < c.dim; ++d) {
                    const double product =
                        operand(q.row(r)[h * c.dim + d]) * operand(k.row(key)[kv_at + d]);
                    sum += product;
                    size += std::fabs(product);
                }
                p[size_t(key)] = sum;
                moved = std::max(moved, dot(sum, size, c.dim).allowed);
                top = std::max(top, sum);
                spread = std::max(spread, std::fabs(sum));
            }
            for (int key = 0; key < length; ++key) {
                p[size_t(key)] = std::exp((p[size_t(key)] - top) * scale);
                total += p[size_t(key)];
            }
            // The difference to the largest score and its product with the scale round too.
            moved = (moved + 4 * kEps * spread) * scale;
            const double weights = rounds ? 2 * kCoarseExp + kEpsBf16 : 32 * kEps;
            const double sums = (c.keys / 16 + std::min(c.keys, 256) + 16) * kEps;
            for (int d = 0; d < c.dim; ++d) {
                double value = 0, size = 0;
                for (int key = 0; key < length; ++key) {
                    const double product = p[size_t(key)] / total * operand(v.row(key)[kv_at + d]);
                    value += product;
                    size += std::fabs(product);
                }
                const Bound b{value, (2 * moved + weights + sums) * 1.01 * size};
                bounds[size_t(r) * q.cols + h * c.dim + d] = b.stored(c.out);
            }
        }
    }
    return bounds;
}

// The same for a key's sum of weights over all rows, which are rounded nowhere; a row's own sum is
// in order of the keys or in sixteen parts. Twice it, where `twice`.
std::vector<Bound> expected_mass(const Case& c, const Mat& q, const Mat& k, bool twice) {
    const bool rounds = c.compute == Compute::bfloat16;
    const auto operand = [&](float x) { return double(rounds ? to_bf16(x) : x); };
    const double scale = 1 / std::sqrt(double(c.dim)), times = twice ? 2 : 1;
    std::vector<Bound> bounds(size_t(c.heads) * c.keys, {0, 0});
    std::vector<double> p(static_cast<size_t>(c.keys));
    for (int h = 0; h < c.heads; ++h)
        for (int r = 0; r < c.rows; ++r) {
            const int length = length_of(c, r), kv_at = h / (c.heads / c.kv_heads) * c.dim;
            double top = -INFINITY, moved = 0, spread = 0, total = 0;
            for (int key = 0; key < length; ++key) {
                double sum = 0, size = 0;
                for (int d = 0; d < c.dim; ++d) {
                    const double product =
                        operand(q.row(r)[h * c.dim + d]) * operand(k.row(key)[kv_at + d]);
                    sum += product, size += std::fabs(product);
                }
                p[size_t(key)] = sum;
                moved = std::max(moved, dot(sum, size, c.dim).allowed);
                top = std::max(top, sum), spread = std::max(spread, std::fabs(sum));
            }
            for (int key = 0; key < length; ++key)
                total += p[size_t(key)] = std::exp((p[size_t(key)] - top) * scale);
            moved = (moved + 4 * kEps * spread) * scale;
            const double off = 2 * moved + (c.keys / 16 + 48 + times * c.rows) * kEps;
            for (int key = 0; key < length; ++key) {
                Bound& b = bounds[size_t(h) * c.keys + key];
                const double weight = times * p[size_t(key)] / total;
                b = {b.value + weight, b.allowed + off * 1.01 * weight};
            }
        }
    return bounds;
}

// Positions in runs of 1 to 4, beginning at odd and at even ones, some over the end of a panel.
std::vector<int> scattered(int keys) {
    std::vector<int> positions;
    for (int p = 0; p < keys; ++p)
        if (p % 7 < 3 || p % 5 == 0) positions.push_back(p);
    return positions;
}

void pick(const Mat& x, const std::vector<int>& rows, const Mat& to) {
    for (size_t i = 0; i < rows.size(); ++i)
        std::copy_n(x.row(rows[i]), words_of(x.cols, x.storage), to.row(static_cast<int>(i)));
}

void check(Judge& judge, const Case& c) {
    const LooseMat q(c.rows, c.heads * c.dim, 1u), k(c.keys, c.kv_heads * c.dim, 2u),
        v(c.keys, c.kv_heads * c.dim, 3u);
    const std::vector<Bound> bounds = expected(c, q.mat, k.mat, v.mat);
    std::vector<int> lengths;
    for (int r = 0; r < c.rows; ++r) lengths.push_back(length_of(c, r));
    const auto attend = [&](Backend& b, const Mat& q, const Mat& k, const Mat& v) {
        KvStore* kv = b.make_kv(c.kv_heads, c.dim, c.keys + 5);
        // In two goes, as the expert does, and cut at an odd position, which halves a pair.
        const int cut = c.keys / 3 | 1, rest = c.keys - cut;
        b.store_kv(k.top(std::min(cut, c.keys)), v.top(std::min(cut, c.keys)), kv, nullptr);
        if (rest > 0) b.store_kv(k.below(cut, rest), v.below(cut, rest), kv, &cut);
        // Some again, first wrong and then right: neighbours must keep what they hold.
        const std::vector<int> some = scattered(c.keys);
        const int n = static_cast<int>(some.size());
        b.scatter_kv(k.top(n), v.top(n), kv, some.data());
        const LooseMat keys(n, k.cols, k.storage), values(n, v.cols, v.storage);
        pick(k, some, keys.mat);
        pick(v, some, values.mat);
        b.scatter_kv(keys.mat, values.mat, kv, some.data());
        LooseMat out(c.rows, c.heads * c.dim, c.out);
        b.attention(q, kv, {c.heads, c.kv_heads, c.dim, lengths.data()}, out.mat);
        judge.require(out.margins_untouched(), c.name() + ": writes beside its result");
        return out.values();
    };
    judge.run(c.name(), c.compute, bounds,
              [&](Backend& b) { return attend(b, q.mat, k.mat, v.mat); });
    for (const bool twice : {false, true}) {
        if (c.rows * c.keys > 20000) break;  // the expert's are fewer
        judge.run(c.name() + ", its weights", c.compute, expected_mass(c, q.mat, k.mat, twice),
                  [&](Backend& b) {
                      KvStore* kv = b.make_kv(c.kv_heads, c.dim, c.keys + 5);
                      b.store_kv(k.mat, v.mat, kv, nullptr);
                      LooseMat mass(c.heads, c.keys, Storage::f32);
                      const AttentionShape shape{c.heads, c.kv_heads, c.dim, lengths.data()};
                      b.attention_mass(q.mat, kv, shape, false, mass.mat);
                      if (twice) b.attention_mass(q.mat, kv, shape, true, mass.mat);
                      judge.require(mass.margins_untouched(),
                                    c.name() + ": writes beside its weights");
                      return mass.values();
                  });
    }
    if (c.compute == Compute::float32) return;
    judge.run(c.name() + ", q, k and v rounded", c.compute, bounds, [&](Backend& b) {
        const Storage s = b.activation_storage(c.dim);
        const LooseMat q(c.rows, c.heads * c.dim, 1u, s), k(c.keys, c.kv_heads * c.dim, 2u, s),
            v(c.keys, c.kv_heads * c.dim, 3u, s);
        return attend(b, q.mat, k.mat, v.mat);
    });
}

// Heads of an odd size cannot be written in pairs.
void check_storages(Judge& judge, int rows, int keys, int heads, int kv_heads, int dim, Mask mask) {
    check(judge, {rows, keys, heads, kv_heads, dim, mask, Compute::float32, Storage::f32});
    check(judge, {rows, keys, heads, kv_heads, dim, mask, Compute::bfloat16,
                  dim % 2 == 0 ? Storage::bf16 : Storage::rounded});
}

}  // namespace

void check_attention(Judge& judge) {
    for (int rows : kRows) {
        if (judge.few && rows != 7) continue;
        check_storages(judge, rows, 37, 2, 1, 8, Mask::ragged);
        if (rows < 1024) check_storages(judge, rows, 75, 3, 1, 33, Mask::causal);
    }
    check_storages(judge, 3, 300, 2, 2, 7, Mask::all);  // a chain of weights and a part of one
    if (judge.few) return;
    check_storages(judge, 64, 1024, 2, 2, 64, Mask::all);    // vision
    check_storages(judge, 113, 113, 3, 1, 64, Mask::all);    // prefix
    check_storages(judge, 50, 163, 6, 2, 64, Mask::causal);  // expert
}

}  // namespace smolvla

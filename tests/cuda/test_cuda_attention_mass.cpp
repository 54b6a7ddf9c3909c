// How much keys are looked at: sums in double precision within bounds derived from the roundings,
// and what must not be read or written.
#include <algorithm>

#include "guarded_mat.h"

using namespace smolvla;
using namespace smolvla::cuda;

namespace {

struct Case {
    int rows, heads, kv_heads, dim, capacity, columns;
    bool bf16;
    Storage q = Storage::f32;
    bool add = false;

    int length(int row) const { return std::min(columns, capacity) - row * 5 % 11; }
    std::string name() const {
        char text[160];
        std::snprintf(text, sizeof text, "mass: %d rows, %d of %d keys, %d heads on %d of %d, %d%d",
                      rows, columns, capacity, heads, kv_heads, dim, int(bf16), int(add));
        return text;
    }
};

// A weight's exponent is off by the dot product, its scale and the difference to the largest; the
// exponential, the sum of a row and the quotient round, and so does every row that is added.
std::vector<Bound> expected(const Case& c, const std::vector<float>& q, const std::vector<float>& k,
                            const std::vector<float>& before) {
    const double scale = 1 / std::sqrt(double(c.dim));
    std::vector<Bound> bounds;
    for (int h = 0; h < c.heads; ++h) {
        const float* keys = &k[size_t(h / (c.heads / c.kv_heads)) * c.capacity * c.dim];
        std::vector<double> mass(size_t(c.columns), 0), allowed(size_t(c.columns), 0);
        for (int r = 0; r < c.rows; ++r) {
            std::vector<double> p(size_t(c.length(r)));
            double top = -INFINITY, moved = 0, spread = 0, total = 0;
            for (size_t key = 0; key < p.size(); ++key) {
                double sum = 0, size = 0;
                for (int d = 0; d < c.dim; ++d) {
                    const double product =
                        double(q[(size_t(r) * c.heads + h) * c.dim + d]) * keys[key * c.dim + d];
                    sum += product, size += std::fabs(product);
                }
                p[key] = sum;
                moved = std::max(moved, (c.dim + 2) * kEps * 1.01 * size);
                top = std::max(top, sum), spread = std::max(spread, std::fabs(sum));
            }
            for (double& weight : p) total += weight = std::exp((weight - top) * scale);
            moved = (moved + 6 * kEps * spread) * scale;
            for (size_t key = 0; key < p.size(); ++key) {
                mass[key] += p[key] / total;
                allowed[key] += p[key] / total * (2 * moved + (double(p.size()) + 16) * kEps);
            }
        }
        for (size_t key = 0; key < mass.size(); ++key) {
            const double start = c.add ? before[size_t(h) * c.columns + key] : 0;
            const double rounded = (c.rows + 5) * kEps * (mass[key] + std::fabs(start));
            const bool seen = mass[key] > 0;
            bounds.push_back({start + mass[key], seen ? 1.01 * (allowed[key] + rounded) : 0});
        }
    }
    return bounds;
}

void test(const Case& c) {
    const auto rounded = [](std::vector<float> values, bool rounds) {
        for (float& x : values) x = rounds ? as_bf16(x) : x;
        return values;
    };
    const std::vector<float> q =
        rounded(randoms(size_t(c.rows) * c.heads * c.dim, 1, 4.0f), c.q == Storage::bf16_rows);
    const std::vector<float> k =
        rounded(randoms(size_t(c.kv_heads) * c.capacity * c.dim, 2), c.bf16);
    const std::vector<float> before = randoms(size_t(c.heads) * c.columns, 3);
    std::vector<uint16_t> halves;
    for (const float x : k) halves.push_back(bf16_bits(x));
    DeviceArray<float> k32(k);
    DeviceArray<uint16_t> k16(halves);
    const DeviceKv kv{c.bf16 ? static_cast<void*>(k16.data()) : k32.data(),
                      nullptr,
                      c.kv_heads,
                      c.dim,
                      c.capacity,
                      c.bf16};
    std::vector<int> host_lengths;
    for (int r = 0; r < c.rows; ++r) host_lengths.push_back(c.length(r));
    DeviceArray<int> lengths(host_lengths);
    GuardedMat queries(c.rows, c.heads * c.dim, c.q, q);
    GuardedMat mass(c.heads, c.columns, Storage::f32, before);
    CHECK(!attention_mass(queries.mat(), kv, c.heads, lengths.data(), c.add, mass.mat(), nullptr));
    CHECK(mass.guards_untouched() && queries.guards_untouched());
    CHECK(within(mass.values(), expected(c, q, k, before), c.name()));
}

void test_too_many_keys() {
    DeviceArray<float> k(std::vector<float>(64, 0.0f));
    DeviceArray<int> lengths(std::vector<int>{1});
    const DeviceKv kv{k.data(), nullptr, 1, 64, 1, false};
    GuardedMat q(1, 64, Storage::f32, std::vector<float>(64, 0.0f));
    GuardedMat mass(1, 1505, Storage::f32);
    CHECK(!attention_mass(q.mat(), kv, 1, lengths.data(), false, mass.mat().columns(0, 1504),
                          nullptr));
    CHECK(attention_mass(q.mat(), kv, 1, lengths.data(), false, mass.mat(), nullptr) ==
          cudaErrorInvalidValue);
}

}  // namespace

int main() {
    for (const bool bf16 : {false, true})
        for (const bool add : {false, true}) {
            test({50, 15, 5, 64, 160, 141, bf16, Storage::f32, add});
            test({1, 2, 1, 16, 12, 33, bf16, Storage::f32, add});  // fewer keys than columns
            test({7, 3, 3, 33, 70, 70, bf16, Storage::bf16_rows, add});
            test({4, 6, 2, 7, 300, 290, bf16, Storage::f32, add});
        }
    test_too_many_keys();
    in_every_order([] { test({9, 4, 2, 16, 50, 45, true, Storage::f32, true}); });
    return report("cuda_attention_mass");
}

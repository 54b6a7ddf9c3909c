// Attention and the stores of keys and values: results in double precision within bounds derived
// from the roundings, results that are whole numbers for equality, and what must not be read or
// written.
#include <algorithm>

#include "guarded_mat.h"

using namespace smolvla;
using namespace smolvla::cuda;

namespace {

// narrow and wide: attention_bf16 in blocks of one warp and of four.
enum class Kind { f32, f32_of_bf16, narrow, wide };
constexpr Kind kKinds[] = {Kind::f32, Kind::f32_of_bf16, Kind::narrow, Kind::wide};
bool tensor_cores(Kind kind) { return kind == Kind::narrow || kind == Kind::wide; }

struct Case {
    Kind kind;
    int rows, heads, kv_heads, dim, capacity;
    std::vector<int> lengths;
    Storage q = Storage::f32, out = Storage::f32;

    int keys() const { return *std::max_element(lengths.begin(), lengths.end()); }
    std::string name() const {
        char text[160];
        std::snprintf(text, sizeof text,
                      "attention %d: %d rows, %d of %d keys, %d heads on %d of %d, storages %d %d",
                      int(kind), rows, keys(), capacity, heads, kv_heads, dim, int(q), int(out));
        return text;
    }
};

// q [rows, heads * dim]; keys and values [kv_heads, keys, dim].
struct Operands {
    std::vector<float> q, k, v;
};

// As the kernel sees them.
Operands rounded(const Case& c, Operands o) {
    const bool bf16_q = tensor_cores(c.kind) || c.q == Storage::bf16_rows;
    for (float& x : o.q) x = bf16_q ? as_bf16(x) : x;
    for (auto* side : {&o.k, &o.v})
        for (float& x : *side) x = c.kind == Kind::f32 ? x : as_bf16(x);
    return o;
}

Operands random_operands(const Case& c, float spread) {
    const size_t kv = size_t(c.kv_heads) * c.keys() * c.dim;
    return rounded(
        c, {randoms(size_t(c.rows) * c.heads * c.dim, 1, spread), randoms(kv, 2), randoms(kv, 3)});
}

// Device memory of one side, [kv_heads, capacity, dim]; NaN where no row may look.
template <class T>
std::vector<T> side(const Case& c, const std::vector<float>& values, T (*to)(float), T nan) {
    std::vector<T> all(size_t(c.kv_heads) * c.capacity * c.dim, nan);
    const size_t keys = size_t(c.keys()), dim = size_t(c.dim);
    for (size_t head = 0; head < size_t(c.kv_heads); ++head)
        for (size_t i = 0; i < keys * dim; ++i)
            all[head * size_t(c.capacity) * dim + i] = to(values[head * keys * dim + i]);
    return all;
}

std::vector<float> attend(const Case& c, const Operands& o) {
    const bool bf16 = c.kind != Kind::f32;
    DeviceArray<uint16_t> k16(side<uint16_t>(c, o.k, bf16_bits, 0x7fff));
    DeviceArray<uint16_t> v16(side<uint16_t>(c, o.v, bf16_bits, 0x7fff));
    const auto same = +[](float x) { return x; };
    DeviceArray<float> k32(side<float>(c, o.k, same, NAN)), v32(side<float>(c, o.v, same, NAN));
    const DeviceKv kv{bf16 ? static_cast<void*>(k16.data()) : k32.data(),
                      bf16 ? static_cast<void*>(v16.data()) : v32.data(),
                      c.kv_heads,
                      c.dim,
                      c.capacity,
                      bf16};
    GuardedMat q(c.rows, c.heads * c.dim, c.q, o.q), out(c.rows, c.heads * c.dim, c.out);
    DeviceArray<int> lengths(c.lengths);
    const cudaError_t status =
        tensor_cores(c.kind)
            ? attention_bf16(q.mat(), kv, c.heads, lengths.data(), out.mat(),
                             c.kind == Kind::wide ? 1 : 1 << 20, nullptr)
            : attention_f32(q.mat(), kv, c.heads, lengths.data(), out.mat(), nullptr);
    CHECK(status == cudaSuccess);
    CHECK(out.guards_untouched() && q.guards_untouched());
    return out.values();
}

// How far roundings can take a result. The exponent of a weight is off by `moved`: the dot product,
// the scale, the difference to the largest score. A weight of attention_bf16 is rounded to bfloat16
// where it multiplies values, but not in the sum of weights; its exponential is the coarse one.
// Sums run over the keys, and what is summed so far is scaled anew at every tile of 64.
std::vector<Bound> expected(const Case& c, const Operands& o) {
    const bool coarse = tensor_cores(c.kind);
    const int group = c.heads / c.kv_heads, dim = c.dim;
    const double scale = 1 / std::sqrt(double(dim));
    std::vector<Bound> bounds;
    for (int r = 0; r < c.rows; ++r)
        for (int h = 0; h < c.heads; ++h) {
            const int length = c.lengths[size_t(r)];
            const float* q = &o.q[(size_t(r) * c.heads + h) * dim];
            const size_t head = size_t(h / group) * c.keys() * dim;
            std::vector<double> p(static_cast<size_t>(length));
            double top = -INFINITY, moved = 0, spread = 0, total = 0;
            for (int key = 0; key < length; ++key) {
                double sum = 0, size = 0;
                for (int d = 0; d < dim; ++d) {
                    const double product = double(q[d]) * o.k[head + size_t(key) * dim + d];
                    sum += product, size += std::fabs(product);
                }
                p[size_t(key)] = sum;
                moved = std::max(moved, (dim + 2) * kEps * 1.01 * size);
                top = std::max(top, sum);
                spread = std::max(spread, std::fabs(sum));
            }
            for (double& weight : p) total += weight = std::exp((weight - top) * scale);
            moved = (moved + 6 * kEps * spread) * scale;
            const double exponential = coarse ? kCoarseExp + kEpsBf16 : 8 * kEps;
            const double sums = 2 * (length + 4 * (length / 64 + 1)) * kEps;
            for (int d = 0; d < dim; ++d) {
                double value = 0, size = 0;
                for (int key = 0; key < length; ++key) {
                    const double product =
                        p[size_t(key)] / total * o.v[head + size_t(key) * dim + d];
                    value += product, size += std::fabs(product);
                }
                const Bound b{value, (2 * moved + exponential + sums) * 1.01 * size};
                bounds.push_back(b.stored(c.out));
            }
        }
    return bounds;
}

std::vector<int> all_of(int rows, int keys) { return std::vector<int>(size_t(rows), keys); }
std::vector<int> causal(int rows, int prefix) {
    std::vector<int> lengths;
    for (int r = 0; r < rows; ++r) lengths.push_back(prefix + r + 1);
    return lengths;
}
std::vector<int> ragged(int rows, int most) {
    std::vector<int> lengths;
    for (int r = 0; r < rows; ++r) lengths.push_back(r * 37 % (most + 1));  // 0 keys too
    lengths.back() = most;
    return lengths;
}

// Both storages of q; of the results, what the kernel writes.
void check_storages(Case c) {
    const bool fixed = tensor_cores(c.kind);
    for (Storage q : {Storage::f32, Storage::bf16_rows})
        for (Storage out : {Storage::f32, Storage::bf16_rows}) {
            if (fixed && out == Storage::f32) continue;
            c.q = q, c.out = out;
            for (float spread : {0.3f, 4.0f}) {  // nearly a mean; a few keys take all
                const Operands o = random_operands(c, spread);
                CHECK(within(attend(c, o), expected(c, o), c.name()));
            }
        }
}

void test_sizes() {
    for (Kind kind : kKinds) {
        for (int keys : {1, 15, 16, 63, 64, 65, 130})
            check_storages({kind, 7, 3, 1, 64, keys + 5, ragged(7, keys)});
        for (int rows : {1, 5, 6, 17, 33, 65})
            check_storages({kind, rows, 6, 2, 64, 70, causal(rows, 3)});
        check_storages({kind, 70, 2, 2, 64, 75, ragged(70, 75)});
    }
    for (Kind kind : {Kind::f32, Kind::f32_of_bf16})  // any size of heads
        for (int dim : {1, 2, 33, 80, 256}) check_storages({kind, 9, 4, 2, dim, 40, ragged(9, 33)});
}

void test_the_models() {
    for (Kind kind : kKinds) {
        const Storage out = tensor_cores(kind) ? Storage::bf16_rows : Storage::f32;
        const Storage act = kind == Kind::f32 ? Storage::f32 : Storage::bf16_rows;
        const Case cases[] = {
            {kind, 50, 15, 5, 64, 192 + 50, causal(50, 113), Storage::f32, out},  // expert, self
            {kind, 50, 15, 5, 64, 192, all_of(50, 141), Storage::f32, out},    // and to the prefix
            {kind, 141, 15, 5, 64, 144, all_of(141, 140), Storage::f32, out},  // prefix
            {kind, 256, 12, 12, 64, 256, all_of(256, 256), act, out},  // a quarter of vision
        };
        for (const Case& c : cases) {
            const Operands o = random_operands(c, 1.0f);
            CHECK(within(attend(c, o), expected(c, o), c.name()));
        }
    }
}

// Every key counts once: with q = 0 all weights are 1, and a value is 1 in the column that its
// key's number names. The result is that count over the number of keys, for equality.
void test_every_key_counts_once() {
    for (Kind kind : kKinds)
        for (int keys : {1, 64, 65, 200}) {
            const int rows = 20;
            Case c{kind,
                   rows,
                   3,
                   1,
                   64,
                   keys + 3,
                   ragged(rows, keys),
                   Storage::f32,
                   Storage::bf16_rows};
            Operands o = random_operands(c, 1.0f);
            std::fill(o.q.begin(), o.q.end(), 0.0f);
            for (size_t i = 0; i < o.v.size(); ++i) o.v[i] = float(i / 64 % 64 == i % 64);
            const std::vector<float> got = attend(c, o);
            for (int r = 0; r < rows; ++r)
                for (int column = 0; column < 3 * 64; ++column) {
                    const int n = c.lengths[size_t(r)], d = column % 64;
                    const float count = float(n / 64 + (n % 64 > d));
                    const float factor = n ? 1.0f / float(n) : 0.0f;
                    const float want = tensor_cores(kind) ? count * factor
                                       : n                ? count / float(n)
                                                          : 0.0f;
                    CHECK(got[size_t(r) * 192 + size_t(column)] == as_bf16(want));
                }
        }
}

// Every row and head finds its own keys: keys are signs, a query is 16 times one of them, so that
// its weight is 1 and the others vanish beside it. The result is that key's value, for equality.
void test_every_row_finds_its_key() {
    for (Kind kind : kKinds) {
        const int rows = 37, keys = 150, heads = 6, kv_heads = 2;
        const Case c{kind,
                     rows,
                     heads,
                     kv_heads,
                     64,
                     keys,
                     all_of(rows, keys),
                     Storage::bf16_rows,
                     Storage::bf16_rows};
        Operands o = random_operands(c, 1.0f);
        for (float& x : o.k) x = x < 0 ? -1.0f : 1.0f;
        for (size_t i = 0; i < o.v.size(); ++i) o.v[i] = float(1 + (i * 7 + i / 64 * 13) % 127);
        const auto key_of = [&](int r, int h) { return (r * 41 + h * 17) % keys; };
        const auto at = [&](int r, int h, int d) {
            return (size_t(h / 3) * keys + size_t(key_of(r, h))) * 64 + size_t(d);
        };
        for (size_t i = 0; i < o.q.size(); ++i)
            o.q[i] = 16 * o.k[at(int(i / 64) / heads, int(i / 64) % heads, int(i % 64))];
        const std::vector<float> got = attend(c, o);
        for (size_t i = 0; i < got.size(); ++i)
            CHECK(got[i] == o.v[at(int(i / 64) / heads, int(i / 64) % heads, int(i % 64))]);
    }
}

void test_rows_without_keys() {
    for (Kind kind : kKinds) {
        const Case c{kind, 21, 3, 1, 64, 64, all_of(21, 0), Storage::f32, Storage::bf16_rows};
        for (float x : attend(c, {std::vector<float>(21 * 192, 1.0f), {}, {}})) CHECK(x == 0);
    }
}

// What is no number shows where it belongs, and nowhere else.
void test_not_a_number() {
    for (Kind kind : kKinds) {
        const Case c{kind, 18, 6, 2, 64, 80, causal(18, 60), Storage::f32, Storage::bf16_rows};
        const Operands clean = random_operands(c, 1.0f);
        const std::vector<float> want = attend(c, clean);
        const auto differs = [&](const Operands& o, auto poisoned) {
            const std::vector<float> got = attend(c, o);
            for (int r = 0; r < c.rows; ++r)
                for (int column = 0; column < 6 * 64; ++column) {
                    const float g = got[size_t(r) * 384 + size_t(column)];
                    const float w = want[size_t(r) * 384 + size_t(column)];
                    CHECK(poisoned(r, column / 64, column % 64) ? std::isnan(g) : g == w);
                }
        };
        for (float bad : {NAN, INFINITY}) {
            Operands o = clean;
            for (int d = 0; d < 64; ++d) o.q[size_t(5 * 6 + 4) * 64 + size_t(d)] = bad;
            differs(o, [](int r, int h, int) { return r == 5 && h == 4; });
        }
        Operands o = clean;  // key 66 of the second head: rows from 6 on look at it
        o.k[(size_t(c.keys()) + 66) * 64 + 9] = NAN;
        differs(o, [](int r, int h, int) { return r >= 6 && h >= 3; });
        o = clean;
        o.v[(size_t(c.keys()) + 3) * 64 + 9] = NAN;
        differs(o, [](int, int h, int d) { return h >= 3 && d == 9; });
    }
}

// Rows of float32 may lie anywhere; of bfloat16 they are refused where 16 bytes cannot be read.
void test_rows_that_lie_anywhere() {
    for (Kind kind : {Kind::narrow, Kind::wide}) {
        const Case c{kind, 9, 2, 1, 64, 70, all_of(9, 70), Storage::f32, Storage::bf16_rows};
        const Operands o = random_operands(c, 1.0f);
        const std::vector<float> want = attend(c, o);
        const ptrdiff_t ld = 2 * 64 + 3;
        std::vector<float> words(size_t(1 + 9 * ld), NAN);
        for (size_t i = 0; i < o.q.size(); ++i) words[1 + i / 128 * size_t(ld) + i % 128] = o.q[i];
        DeviceArray<float> q(words);
        DeviceArray<uint16_t> k(side<uint16_t>(c, o.k, bf16_bits, 0x7fff));
        DeviceArray<uint16_t> v(side<uint16_t>(c, o.v, bf16_bits, 0x7fff));
        const DeviceKv kv{k.data(), v.data(), 1, 64, 70, true};
        GuardedMat out(9, 128, Storage::bf16_rows);
        DeviceArray<int> lengths(c.lengths);
        const int processors = kind == Kind::wide ? 1 : 1 << 20;
        Mat loose{q.data() + 1, 9, 128, ld, Storage::f32};
        CHECK(!attention_bf16(loose, kv, 2, lengths.data(), out.mat(), processors, nullptr));
        CHECK(same_bits(out.values(), want));
        loose.storage = Storage::bf16_rows;
        for (const auto& [offset, pitch] : {std::pair<int, int>{1, 128}, {0, 66}}) {
            loose.data = q.data() + offset, loose.ld = pitch;
            CHECK(attention_bf16(loose, kv, 2, lengths.data(), out.mat(), processors, nullptr) ==
                  cudaErrorInvalidValue);
        }
    }
}

// The scores of all keys stand in shared memory, of which each device has its own most; a smaller
// need that comes later takes nothing away.
void test_many_keys() {
    for (Kind kind : {Kind::f32, Kind::f32_of_bf16}) {
        Case c{kind, 2, 1, 1, 64, 4000, all_of(2, 4000)};
        const Operands o = random_operands(c, 1.0f);
        CHECK(!prepare_attention(4000, 64) && !prepare_attention(3100, 64));
        CHECK(!prepare_attention(10, 64));
        CHECK(within(attend(c, o), expected(c, o), c.name()));
    }
    const int most[][2] = {{80, 163}, {87, 163}, {89, 99}, {90, 227}, {120, 99}};
    for (const auto& [architecture, kilobytes] : most) {
        emulator::use_device(architecture);
        CHECK(!prepare_attention(kilobytes * 64 - 64, 64));  // 16 bytes each
        CHECK(prepare_attention(kilobytes * 64 - 63, 64) == cudaErrorInvalidValue);
        cudaGetLastError();
    }
    emulator::use_device(89);
}

void test_any_order() {
    for (Kind kind : kKinds) {
        const Storage out = tensor_cores(kind) ? Storage::bf16_rows : Storage::f32;
        const Case c{kind, 50, 3, 1, 64, 140, causal(50, 80), Storage::f32, out};
        const Operands o = random_operands(c, 1.0f);
        const std::vector<float> want = attend(c, o);
        in_every_order([&] { CHECK(same_bits(attend(c, o), want)); });
    }
}

// Rows go to *first and on; what does not fit goes nowhere; all else stays as it was.
template <class T>
void test_store(T (*to)(float), bool bf16) {
    constexpr int kHeads = 3, kDim = 10, kCapacity = 20, kWidth = kHeads * kDim;
    for (Storage storage : {Storage::f32, Storage::bf16_rows})
        for (const auto& [first, rows] : std::vector<std::pair<int, int>>{
                 {-1, 7}, {0, kCapacity}, {5, 1}, {9, 11}, {16, 4}, {16, 9}, {20, 3}}) {
            const std::vector<float> k = randoms(size_t(rows) * kWidth, 7);
            const std::vector<float> v = randoms(size_t(rows) * kWidth, 8);
            GuardedMat keys(rows, kWidth, storage, k), values(rows, kWidth, storage, v);
            T pattern;
            std::memset(&pattern, 0xa5, sizeof pattern);
            DeviceArray<T> k_store(std::vector<T>(kHeads * kCapacity * kDim, pattern));
            DeviceArray<T> v_store(std::vector<T>(kHeads * kCapacity * kDim, pattern));
            const DeviceKv kv{k_store.data(), v_store.data(), kHeads, kDim, kCapacity, bf16};
            DeviceArray<int> at(std::vector<int>{first});
            const int* where = first < 0 ? nullptr : at.data();
            CHECK(!store_kv(keys.mat(), values.mat(), kv, where, nullptr));
            std::vector<T> k_want(kHeads * kCapacity * kDim, pattern), v_want = k_want;
            for (int r = 0; r < rows; ++r)
                for (int i = 0; i < kWidth; ++i) {
                    const int position = std::max(first, 0) + r, head = i / kDim;
                    if (position >= kCapacity) continue;
                    const size_t slot = size_t((head * kCapacity + position) * kDim + i % kDim);
                    const bool round = storage == Storage::bf16_rows;
                    const float key = k[size_t(r * kWidth + i)], value = v[size_t(r * kWidth + i)];
                    k_want[slot] = to(round ? as_bf16(key) : key);
                    v_want[slot] = to(round ? as_bf16(value) : value);
                }
            CHECK(k_store.read() == k_want && v_store.read() == v_want);
        }
}

}  // namespace

int main() {
    test_sizes();
    test_the_models();
    test_every_key_counts_once();
    test_every_row_finds_its_key();
    test_rows_without_keys();
    test_not_a_number();
    test_rows_that_lie_anywhere();
    test_many_keys();
    test_any_order();
    test_store<uint16_t>(bf16_bits, true);
    test_store<float>([](float x) { return x; }, false);
    return report("cuda_attention");
}

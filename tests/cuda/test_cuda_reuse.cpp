// What plans that leave work out need, beside the CPU's operations: the same bits where the
// arithmetic is the same, else within bounds derived from the roundings. Odd sizes, patterns around
// everything.
#include <algorithm>
#include <numeric>

#include "guarded_mat.h"

using namespace smolvla;
using namespace smolvla::cuda;

namespace {

constexpr int kWidths[] = {1, 2, 31, 32, 33, 64, 129, 720};

Backend& cpu() {
    static const std::unique_ptr<Backend> made =
        make_cpu_backend(1 << 20, 64 << 20, 1, "scalar", Compute::float32);
    return *made;
}

// Rows of the host's without gaps, as the CPU's operations take them.
Mat rows_of(std::vector<float>& values, int rows) {
    const int cols = int(values.size()) / rows;
    return {values.data(), rows, cols, cols};
}

// `count` different numbers below `all`, in no order.
std::vector<int> some_of(int all, int count, unsigned seed) {
    std::vector<int> numbers(static_cast<size_t>(all));
    std::iota(numbers.begin(), numbers.end(), 0);
    std::shuffle(numbers.begin(), numbers.end(), std::mt19937(seed));
    numbers.resize(size_t(count));
    return numbers;
}

// --- rows ----------------------------------------------------------------------------------------

void test_pick_and_put(int all, int some, int cols) {
    std::vector<float> many = randoms(size_t(all) * cols, 1), few = randoms(size_t(some) * cols, 2);
    const std::vector<int> numbers = some_of(all, some, 3);
    DeviceArray<int> ids(numbers);
    GuardedMat x(all, cols, Storage::f32, many), out(some, cols, Storage::f32);
    CHECK(!pick_rows(x.mat(), ids.data(), out.mat(), nullptr));
    CHECK(out.guards_untouched() && x.guards_untouched());
    std::vector<float> want(few.size());
    cpu().pick_rows(rows_of(many, all), numbers.data(), rows_of(want, some));
    CHECK(same_bits(out.values(), want));

    GuardedMat from(some, cols, Storage::f32, few);
    CHECK(!put_rows(from.mat(), ids.data(), x.mat(), nullptr));
    CHECK(from.guards_untouched() && x.guards_untouched());
    cpu().put_rows(rows_of(few, some), numbers.data(), rows_of(many, all));
    CHECK(same_bits(x.values(), many));
}

void test_add(int rows, int cols, float scale) {
    std::vector<float> a = randoms(size_t(rows) * cols, 4), b = randoms(a.size(), 5);
    std::vector<float> want(a.size());
    cpu().add(rows_of(a, rows), rows_of(b, rows), scale, rows_of(want, rows));
    for (int into : {0, 1, 2}) {  // a third matrix, or either of the two
        GuardedMat x(rows, cols, Storage::f32, a), z(rows, cols, Storage::f32, b);
        GuardedMat y(rows, cols, Storage::f32);
        GuardedMat& out = into == 0 ? y : into == 1 ? x : z;
        CHECK(!add_rows(x.mat(), z.mat(), scale, out.mat(), nullptr));
        CHECK(x.guards_untouched() && z.guards_untouched() && y.guards_untouched());
        CHECK(same_bits(out.values(), want));
    }
}

// Sums in double are off by a few 2^-53 of their magnitudes, and both devices round them once.
void test_compare(int rows, int cols, int columns) {
    std::vector<float> a = randoms(size_t(rows) * cols, 6), b = randoms(a.size(), 7);
    std::copy_n(a.begin(), cols, b.begin());  // the first rows are the same
    GuardedMat x(rows, cols, Storage::f32, a), y(rows, cols, Storage::f32, b);
    GuardedMat sums(rows, 5, Storage::f32);
    CHECK(!compare_rows(x.mat(), y.mat(), columns, sums.mat(), nullptr));
    CHECK(sums.guards_untouched() && x.guards_untouched() && y.guards_untouched());
    std::vector<float> want(size_t(rows) * 5);
    cpu().compare(rows_of(a, rows), rows_of(b, rows), columns, rows_of(want, rows));
    const std::vector<float> got = sums.values();
    std::vector<Bound> bounds;
    for (int r = 0; r < rows; ++r) {
        double size = 0;
        for (int c = 0; c < columns; ++c) {
            const size_t at = size_t(r) * cols + size_t(c);
            size += std::pow(std::fabs(double(a[at])) + std::fabs(double(b[at])), 2);
        }
        for (int i = 0; i < 5; ++i) {
            const double value = want[size_t(5 * r + i)];
            const bool exactly = i == 4 || (r == 0 && i == 3);  // the largest; no difference
            bounds.push_back(
                {value, exactly ? 0 : 2 * kEps * std::fabs(value) + columns * 0x1p-51 * size});
        }
    }
    CHECK(within(got, bounds, "compare_rows of " + std::to_string(columns)));
}

// Wherever a NaN is, and in which matrix, the largest difference shows it; infinities that are the
// same have a difference that is none.
void test_compare_of_no_numbers() {
    constexpr int kCols = 70;
    const std::vector<int> columns = {0, 1, 31, 32, 63, 64, 69};
    const int rows = int(columns.size()) + 2;
    for (const bool in_a : {true, false}) {
        std::vector<float> a = randoms(size_t(rows) * kCols, 8), b = randoms(a.size(), 9);
        for (size_t i = 0; i < columns.size(); ++i)
            (in_a ? a : b)[i * kCols + size_t(columns[i])] = i % 2 ? NAN : -NAN;
        const size_t infinite = columns.size() * kCols;
        a[infinite + 3] = b[infinite + 3] = INFINITY;
        a[infinite + kCols + 65] = -INFINITY;
        GuardedMat x(rows, kCols, Storage::f32, a), y(rows, kCols, Storage::f32, b);
        GuardedMat sums(rows, 5, Storage::f32);
        CHECK(!compare_rows(x.mat(), y.mat(), kCols, sums.mat(), nullptr));
        std::vector<float> want(size_t(rows) * 5);
        cpu().compare(rows_of(a, rows), rows_of(b, rows), kCols, rows_of(want, rows));
        const std::vector<float> got = sums.values();
        for (int r = 0; r < rows; ++r) {
            const float most = got[size_t(5 * r + 4)], off = got[size_t(5 * r + 3)];
            CHECK(std::isnan(most) == std::isnan(want[size_t(5 * r + 4)]));
            CHECK(std::isnan(most) == (r != rows - 1) && std::isnan(off) == std::isnan(most));
        }
        CHECK(std::isinf(got[size_t(5 * rows - 1)]));
    }
}

// --- blocks of a frame ---------------------------------------------------------------------------

struct Cut {
    int height, width, patch, scale;
    int side() const { return patch * scale; }
    int down() const { return height / side(); }
    int across() const { return width / side(); }
    size_t pixels() const { return size_t(3) * height * width; }
    int block_of(int y, int x) const { return y / side() * across() + x / side(); }
};

std::vector<float> changes(const Cut& c, std::vector<float> a, std::vector<float> b) {
    DeviceArray<float> pixels(a), reference(b);
    GuardedMat change(1, c.down() * c.across(), Storage::f32);
    CHECK(!block_change(pixels.data(), reference.data(), c.height, c.width, c.patch, c.scale,
                        change.mat().data, nullptr));
    CHECK(change.guards_untouched());
    return change.values();
}

// Every second block differs: the CPU's values, within the roundings of its chain and of ours.
void test_block_change(const Cut& c) {
    std::vector<float> a = random_values(c.pixels(), 10), b = a;
    const std::vector<float> other = random_values(c.pixels(), 11);
    for (int y = 0; y < c.height; ++y)
        for (int x = 0; x < c.width; ++x) {
            const bool inside = y < c.down() * c.side() && x < c.across() * c.side();
            if (inside && c.block_of(y, x) % 2 == 0) continue;  // beyond whole blocks all differs
            for (int channel = 0; channel < 3; ++channel) {
                const size_t at = (size_t(channel) * c.height + y) * c.width + x;
                b[at] = other[at];
            }
        }
    const int blocks = c.down() * c.across(), terms = 3 * c.patch * c.patch;
    const std::vector<float> got = changes(c, a, b);
    std::vector<float> want(static_cast<size_t>(blocks));
    cpu().block_change(a.data(), b.data(), c.height, c.width, c.patch, c.scale,
                       {want.data(), 1, blocks, blocks});
    for (int i = 0; i < blocks; ++i) {
        const double value = want[size_t(i)];
        CHECK((got[size_t(i)] == 0) == (i % 2 == 0));
        CHECK(std::fabs(got[size_t(i)] - value) <= (terms + terms / 32 + 10) * kEps * value);
    }
}

// One pixel, in whichever channel and patch it is, by as little as pixels can differ: those of
// letterbox are multiples of 2^-24.
void test_one_pixel(const Cut& c) {
    const std::vector<float> same = random_values(c.pixels(), 12);
    const std::vector<float> none = changes(c, same, same);
    for (const float change : none) CHECK(change == 0);
    for (int i = 0; i < 40; ++i) {
        const int y = i * 7 % (c.down() * c.side()), x = i * 11 % (c.across() * c.side());
        const size_t at = (size_t(i % 3) * c.height + y) * c.width + x;
        for (const float value : {0x1p-24f, NAN, -INFINITY}) {
            std::vector<float> a = same, b = same;
            a[at] = value, b[at] = 0;
            const std::vector<float> got = changes(c, a, b);
            for (size_t k = 0; k < got.size(); ++k)
                if (int(k) != c.block_of(y, x))
                    CHECK(got[k] == 0);
                else
                    CHECK(std::isnan(value) ? std::isnan(got[k]) : got[k] > 0);
            std::vector<float> want(got.size());
            cpu().block_change(a.data(), b.data(), c.height, c.width, c.patch, c.scale,
                               {want.data(), 1, int(want.size()), ptrdiff_t(want.size())});
            for (size_t k = 0; k < got.size(); ++k)
                CHECK(got[k] == want[k] || (std::isnan(got[k]) && std::isnan(want[k])));
        }
    }
}

// A block's number does not depend on what is launched beside it: the only block of a frame, and
// the same pixels as one of many.
void test_change_of_a_block_alone() {
    const Cut one{12, 12, 3, 4}, many{36, 60, 3, 4};
    const std::vector<float> a = random_values(one.pixels(), 13), b = random_values(a.size(), 14);
    const float want = changes(one, a, b)[0];
    std::vector<float> wide_a(many.pixels()), wide_b(many.pixels());
    for (int channel = 0; channel < 3; ++channel)
        for (int y = 0; y < many.height; ++y)
            for (int x = 0; x < many.width; ++x) {
                const size_t to = (size_t(channel) * many.height + y) * many.width + x;
                const size_t from = (size_t(channel) * 12 + y % 12) * 12 + x % 12;
                wide_a[to] = a[from], wide_b[to] = b[from];
            }
    const std::vector<float> got = changes(many, wide_a, wide_b);
    CHECK(same_bits(got, std::vector<float>(15, want)));
}

void test_copy_blocks(const Cut& c, int count) {
    std::vector<float> pixels = random_values(c.pixels(), 15), want(c.pixels(), 7.0f);
    const std::vector<int> numbers = some_of(c.down() * c.across(), count, 16);
    DeviceArray<float> from(pixels);
    DeviceArray<int> ids(numbers);
    GuardedMat to(1, int(c.pixels()), Storage::f32, want);
    CHECK(!copy_blocks(from.data(), c.height, c.width, c.side(), ids.data(), count, to.mat().data,
                       nullptr));
    CHECK(to.guards_untouched());
    cpu().copy_blocks(pixels.data(), c.height, c.width, c.side(), numbers.data(), count,
                      want.data());
    CHECK(same_bits(to.values(), want));
}

// --- keys and values -----------------------------------------------------------------------------

// Each row where store_kv puts it alone; others keep what they hold, and what has no place is
// dropped.
template <class T>
void test_scatter(int heads, int dim, Storage storage) {
    constexpr int kCapacity = 37, kRows = 12;
    const int width = heads * dim;
    std::vector<int> positions = some_of(kCapacity, kRows, 17);
    positions[3] = kCapacity, positions[7] = -1;
    std::vector<float> k = randoms(size_t(kRows) * width, 18), v = randoms(k.size(), 19);
    GuardedMat keys(kRows, width, storage, k), values(kRows, width, storage, v);
    const auto run = [&](bool scattered) {
        const std::vector<T> before(size_t(kCapacity) * width, T(77));
        DeviceArray<T> k_store(before), v_store(before);
        DeviceArray<int> at(positions);
        const DeviceKv kv{k_store.data(), v_store.data(), heads, dim, kCapacity, sizeof(T) == 2};
        if (scattered) CHECK(!scatter_kv(keys.mat(), values.mat(), kv, at.data(), nullptr));
        for (int r = 0; r < kRows && !scattered; ++r)
            CHECK(!store_kv(keys.mat().below(r, 1), values.mat().below(r, 1), kv, at.data() + r,
                            nullptr));
        return std::make_pair(k_store.read(), v_store.read());
    };
    CHECK(run(true) == run(false));
    CHECK(keys.guards_untouched() && values.guards_untouched());
}

}  // namespace

int main() {
    for (int cols : kWidths) {
        test_pick_and_put(40, 1, cols);
        test_pick_and_put(17, 17, cols);
        test_pick_and_put(256, 51, cols);
        for (float scale : {1.0f, -1.0f, 0.3f}) test_add(cols % 5 + 1, cols, scale);
        for (int rows : {1, 4, 5, 50}) test_compare(rows, cols, cols - cols / 3);
    }
    test_compare_of_no_numbers();
    for (const Cut& c : {Cut{64, 64, 16, 2}, Cut{12, 12, 3, 4}, Cut{1, 1, 1, 1}, Cut{37, 50, 4, 3},
                         Cut{30, 15, 5, 3}}) {
        test_block_change(c);
        for (int count : {1, c.down() * c.across()}) test_copy_blocks(c, count);
    }
    test_one_pixel({64, 64, 16, 2});
    test_one_pixel({37, 50, 4, 3});
    test_change_of_a_block_alone();
    for (Storage storage : {Storage::f32, Storage::bf16_rows}) {
        test_scatter<uint16_t>(5, 64, storage);
        test_scatter<uint16_t>(1, 34, storage);
        test_scatter<float>(3, 16, storage);
    }
    in_every_order([] {
        test_pick_and_put(40, 13, 33);
        test_add(7, 33, 0.3f);
        test_compare(7, 129, 100);
        test_block_change({37, 50, 4, 3});
        test_change_of_a_block_alone();
        test_copy_blocks({37, 50, 4, 3}, 5);
        test_scatter<uint16_t>(3, 34, Storage::f32);
    });
    return report("cuda_reuse");
}

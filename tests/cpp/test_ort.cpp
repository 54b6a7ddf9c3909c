// The parts of the library for ONNX Runtime that need no runtime. With one, the whole of it is
// tested by tests/unit/test_ort_*.py.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "check.h"
#include "ort/columns.h"
#include "ort/scratch.h"
#include "runtime/error.h"

namespace smolvla::ort {
namespace {

using Rows = std::vector<std::vector<int>>;  // 0 and 1

std::vector<Columns> parts_of(const Rows& rows) {
    std::vector<uint8_t> mask;
    for (const std::vector<int>& row : rows)
        for (int readable : row) mask.push_back(static_cast<uint8_t>(readable));
    const int columns = rows.empty() ? 0 : static_cast<int>(rows[0].size());
    return readable(mask.data(), static_cast<int>(rows.size()), columns);
}

// Every row reads what its part says, and nothing else.
void check_parts(const Rows& rows, size_t parts) {
    const std::vector<Columns> found = parts_of(rows);
    CHECK(found.size() == parts);
    size_t row = 0;
    for (const Columns& part : found) {
        CHECK(part.first == static_cast<int>(row));
        CHECK(std::is_sorted(part.columns.begin(), part.columns.end()));
        for (int length : part.lengths) {
            std::vector<int> read(rows[row].size());
            for (int i = 0; i < length; ++i) read[size_t(part.columns[size_t(i)])] = 1;
            CHECK(read == rows[row++]);
        }
    }
    CHECK(row == rows.size());
}

void test_masks() {
    // A prefix with holes, then causal: one part, also where rows come in another order.
    check_parts({{1, 0, 1, 1, 0, 0}, {1, 0, 1, 1, 1, 0}, {1, 0, 1, 1, 1, 1}}, 1);
    check_parts({{1, 0, 1, 1, 1, 1}, {1, 0, 1, 1, 0, 0}, {1, 0, 1, 1, 1, 0}}, 1);
    check_parts({{1, 1}, {1, 1}, {1, 1}}, 1);
    check_parts({{1}}, 1);
    // A column that comes before one that others read begins a part.
    check_parts({{0, 1}, {1, 1}}, 2);
    check_parts({{1, 0}, {0, 1}, {1, 0}}, 3);
    check_parts({{1, 1, 0}, {1, 0, 0}, {1, 0, 1}}, 2);
    check_parts(Rows(), 0);
    CHECK_THROWS(parts_of({{1, 0}, {0, 0}}), input);
    CHECK_THROWS(parts_of(Rows(1)), input);
}

// Nobody writes where another works.
void test_scratch() {
    std::atomic<int> disturbed{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
        threads.emplace_back([t, &disturbed] {
            for (int turn = 0; turn < 500; ++turn) {
                const size_t count = 17 + size_t((turn * 7 + t) % 500);
                Scratch scratch(2 * Scratch::room(count));
                float* pieces[] = {scratch.floats(count), scratch.floats(count)};
                for (int piece = 0; piece < 2; ++piece)
                    std::fill_n(pieces[piece], count, static_cast<float>(8 * turn + 2 * t + piece));
                std::this_thread::yield();
                for (int piece = 0; piece < 2; ++piece)
                    disturbed += std::count(pieces[piece], pieces[piece] + count,
                                            static_cast<float>(8 * turn + 2 * t + piece)) !=
                                 static_cast<ptrdiff_t>(count);
            }
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(disturbed == 0);

    Scratch scratch(32);
    CHECK(reinterpret_cast<uintptr_t>(scratch.floats(1)) % 64 == 0);
    CHECK(reinterpret_cast<uintptr_t>(scratch.floats(1)) % 64 == 0);
    CHECK_THROWS(scratch.floats(1 << 20), backend);
}

}  // namespace
}  // namespace smolvla::ort

int main() {
    smolvla::ort::test_masks();
    smolvla::ort::test_scratch();
    return report("ort");
}

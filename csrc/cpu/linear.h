// Linear layers: rows times panels of weights, cut into items for the thread pool.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "ops/ops.h"
#include "runtime/threads.h"

namespace smolvla::cpu {

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
// Start of part `i` of `parts` nearly equal parts of n.
inline int part_start(int n, int parts, int i) { return static_cast<int>(int64_t(n) * i / parts); }

// What an operation works with.
struct Workplace {
    const Kernels& kernels;
    Workers& workers;
    const std::vector<float*>& scratch;  // words for each thread
};

// Rows that cost little each: several to an item.
template <class Body>
void each_row(Workers& workers, int rows, const Body& body) {
    constexpr int kRows = 8;
    workers.run(ceil_div(rows, kRows), [&](int item, int thread) {
        const int end = std::min(rows, (item + 1) * kRows);
        for (int r = item * kRows; r < end; ++r) body(r, thread);
    });
}

// Rows whose operands stay in L2 while the panels of `w` stream past.
int block_rows(const Kernels& kernels, const PackedLinear& w);

// Words of a row of `columns` in scratch, and x converted into it.
inline ptrdiff_t operand_ld(int columns) { return ceil_div(columns, 16) * 16; }
Mat convert(const Kernels& kernels, Mat x, Storage storage, float* scratch);

// Rows of integers, as a weight of codes wants them: room for one, and those of x.
inline ptrdiff_t coded_ld(int columns) { return operand_ld(words_of(columns, Storage::i8)) + 16; }
Mat quantize(const Workplace& place, Mat x, float* room);

// y = activation(x W^T + bias) * scale * column_scale + residual. Rows that are not stored as
// `operand` are converted into scratch, of at least block_rows * operand_ld(w.in) words; codes need
// rows of Storage::i8.
void run_linear(const Workplace& place, Mat x, const PackedLinear& w, Mat y,
                const LinearOptions& options, Storage operand);

}  // namespace smolvla::cpu

#include <algorithm>
#include <vector>

#include "cpu/rows.h"
#include "ort/kernels.h"

namespace smolvla::ort {
namespace {

// One row serves all, or there is one for each.
int rows_of(const Tensor& tensor, int rows) {
    return tensor.rank > 0 && tensor.dims[0] == 1 ? 1 : rows;
}

}  // namespace

// A few thousand numbers: one thread.
void DenoiseStep::compute(KernelContext* context) const {
    const Tensor x = input(api_, context, 0), v = input(api_, context, 1);
    const Tensor last = input(api_, context, 2), row = input(api_, context, 3);
    const Tensor target = input(api_, context, 4), weights = input(api_, context, 5);
    x.expect("DenoiseStep: x", kFloat, {-1, -1});
    const int rows = x.dim(0), dims = x.dim(1);
    v.expect("DenoiseStep: v", kFloat, {rows, dims});
    last.expect("DenoiseStep: last", kFloat, {rows, dims});
    row.expect("DenoiseStep: row", kFloat, {5});
    target.expect("DenoiseStep: pull_target", kFloat, {rows_of(target, rows), dims});
    weights.expect("DenoiseStep: pull_weights", kFloat, {rows_of(weights, rows)});

    // Here a row of the schedule is {time, dt, now, before, gain}.
    const float* at = row.floats();
    const float schedule[5] = {at[1], at[0], at[4], at[2], at[3]};
    std::vector<float> weight(static_cast<size_t>(rows));
    for (int r = 0; r < rows; ++r)
        weight[size_t(r)] = weights.floats()[weights.dims[0] == 1 ? 0 : r];
    const Mat next{output(api_, context, 0, x), rows, dims, dims};
    const Mat pulled{output(api_, context, 1, v), rows, dims, dims};
    const size_t count = size_t(rows) * size_t(dims);
    std::copy_n(x.floats(), count, next.data);
    std::copy_n(last.floats(), count, pulled.data);
    const Mat given{static_cast<float*>(v.data), rows, dims, dims};
    const Mat previous{static_cast<float*>(target.data), rows, dims,
                       target.dims[0] == 1 ? 0 : dims};
    cpu::flow_update(next, given, schedule, {previous, weight.data()}, pulled);
}

}  // namespace smolvla::ort

#include <vector>

#include "cpu/pack_codes.h"
#include "ort/kernels.h"
#include "ort/session_workers.h"

namespace smolvla::ort {

LinearW4::LinearW4(const Api& api, const KernelInfo* info)
    : api_(api), group_(attribute(api, info, "group")) {
    if (group_ != 32 && group_ != 64 && group_ != 128)
        fail(ErrorKind::input, "LinearW4: group: expected 32, 64 or 128, got %d", group_);
    Tensor codes, scales;
    if (constant_input(api, info, 1, codes) && constant_input(api, info, 2, scales))
        weight_ = pack(codes, scales);
}

LinearW4::Weight LinearW4::pack(const Tensor& codes, const Tensor& scales) const {
    codes.expect("LinearW4: codes", kInt4, {-1, -1});
    const int in = codes.dim(0), out = codes.dim(1);
    if (in < 1 || in > kMaxCodes || out < 1)
        fail(ErrorKind::input, "LinearW4: codes: expected 1 to %d rows and a column, got %s",
             kMaxCodes, codes.shape().c_str());
    scales.expect("LinearW4: scales", kFloat, {cpu::ceil_div(in, group_), out});
    const cpu::OnnxCodes from{static_cast<const uint8_t*>(codes.data), scales.floats(), in, out,
                              group_};
    Weight weight{make_block(cpu::packed_bytes(from)), {}};
    weight.packed = cpu::pack_onnx_codes(from, cpu_kernels().dot4->order, weight.block.get());
    return weight;
}

void LinearW4::compute(KernelContext* context) const {
    const Tensor from = input(api_, context, 0);
    // Codes that another node made, or that a caller gives: they may differ in every call.
    Weight changing;
    if (!weight_.block) changing = pack(input(api_, context, 1), input(api_, context, 2));
    const PackedLinear& w = weight_.block ? weight_.packed : changing.packed;

    Tensor to = from;
    int64_t rows = 1;
    for (int i = 0; i + 1 < from.rank; ++i) rows *= from.dims[size_t(i)];
    if (from.type != kFloat || from.rank < 1 || from.last() != w.in || rows > kMostRows)
        fail(ErrorKind::input, "LinearW4: x: expected float32 [..., %d] of at most %d rows, got %s",
             w.in, kMostRows, from.shape().c_str());
    to.dims[size_t(to.rank) - 1] = w.out;
    float* y = output(api_, context, 0, to);
    if (rows == 0) return;

    SessionWorkers workers(api_, context, most_threads());
    const std::vector<float*> none;  // rows of integers need no scratch in the threads
    const cpu::Workplace place{cpu_kernels(), workers, none};
    const Mat x{static_cast<float*>(from.data), static_cast<int>(rows), w.in, w.in};
    const size_t words = size_t(rows) * cpu::coded_ld(w.in);
    Scratch scratch(Scratch::room(words));
    const Mat integers = cpu::quantize(place, x, scratch.floats(words));
    cpu::run_linear(place, integers, w, {y, x.rows, w.out, w.out}, {}, Storage::i8);
}

}  // namespace smolvla::ort

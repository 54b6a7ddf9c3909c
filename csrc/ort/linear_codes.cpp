#include <string>
#include <vector>

#include "cpu/pack_codes.h"
#include "ort/kernels.h"
#include "ort/session_workers.h"

namespace smolvla::ort {

namespace {

int group_of(const Api& api, const KernelInfo* info) {
    const int group = attribute(api, info, "group");
    if (group != 32 && group != 64 && group != 128)
        fail(ErrorKind::input, "LinearW4: group: expected 32, 64 or 128, got %d", group);
    return group;
}

}  // namespace

LinearW4::LinearW4(const Api& api, const KernelInfo* info)
    : LinearCodes(api, info, "LinearW4", group_of(api, info)) {}

LinearW8::LinearW8(const Api& api, const KernelInfo* info)
    : LinearCodes(api, info, "LinearW8", 0) {}

LinearCodes::LinearCodes(const Api& api, const KernelInfo* info, const char* name, int group)
    : api_(api), name_(name), group_(group) {
    Tensor codes, scales;
    if (constant_input(api, info, 1, codes) && constant_input(api, info, 2, scales))
        weight_ = pack(codes, scales);
}

LinearCodes::Weight LinearCodes::pack(const Tensor& codes, const Tensor& scales) const {
    codes.expect(said("codes").c_str(), group_ ? kInt4 : kInt8, {-1, -1});
    const int in = codes.dim(0), out = codes.dim(1);
    if (in < 1 || in > kMaxCodes || out < 1)
        fail(ErrorKind::input, "%s: codes: expected 1 to %d rows and a column, got %s", name_,
             kMaxCodes, codes.shape().c_str());
    if (group_)
        scales.expect(said("scales").c_str(), kFloat, {cpu::ceil_div(in, group_), out});
    else
        scales.expect(said("scales").c_str(), kFloat, {out});
    const cpu::OnnxCodes from{static_cast<const uint8_t*>(codes.data), scales.floats(), in, out,
                              group_};
    const cpu::Kernels& kernels = cpu_kernels();
    const cpu::CodeOrder order = (group_ ? kernels.dot4 : kernels.dot8)->order;
    Weight weight{make_block(cpu::packed_bytes(from)), {}};
    weight.packed = cpu::pack_onnx_codes(from, order, weight.block.get());
    return weight;
}

std::string LinearCodes::said(const char* input) const { return std::string(name_) + ": " + input; }

void LinearCodes::compute(KernelContext* context) const {
    const Tensor from = input(api_, context, 0);
    // Codes that another node made, or that a caller gives: they may differ in every call.
    Weight changing;
    if (!weight_.block) changing = pack(input(api_, context, 1), input(api_, context, 2));
    const PackedLinear& w = weight_.block ? weight_.packed : changing.packed;

    Tensor to = from;
    int64_t rows = 1;
    for (int i = 0; i + 1 < from.rank; ++i) rows *= from.dims[size_t(i)];
    if (from.type != kFloat || from.rank < 1 || from.last() != w.in || rows > kMostRows)
        fail(ErrorKind::input, "%s: x: expected float32 [..., %d] of at most %d rows, got %s",
             name_, w.in, kMostRows, from.shape().c_str());
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

#include "ops/codes.h"

#include <algorithm>

#include "runtime/error.h"

namespace smolvla {
namespace {

std::string scale_of(const std::string& name) { return name + ".scale"; }

// The codes under one scale, for rows of `in` with so many scales. 0: there is no such group.
int group_of(int in, int64_t groups) {
    for (int group : {32, 64, 128})
        if ((in + group - 1) / group == groups) return group;
    return 0;
}

CodeFormat codes_of(const TensorSource& source, const std::string& name, int in, int out) {
    const TensorEntry& e = source.find(name);
    if (in > kMaxCodes)
        fail(ErrorKind::checkpoint, "tensor %s: expected at most %d codes in a row, got %d",
             name.c_str(), kMaxCodes, in);
    if (!source.has(scale_of(name)))
        fail(ErrorKind::checkpoint, "tensor %s holds codes, but %s is missing", name.c_str(),
             scale_of(name).c_str());
    const TensorEntry& scale = source.find(scale_of(name));
    const DType wanted = e.dtype == DType::i8 ? DType::f32 : DType::f16;
    if (scale.dtype != wanted)
        fail(ErrorKind::checkpoint, "tensor %s: expected scales of %s", scale.name.c_str(),
             wanted == DType::f32 ? "F32" : "F16");
    if (e.dtype == DType::i8) {
        source.expect(name, {out, in});
        source.expect(scale.name, {out});
        return {8, 0};
    }
    source.expect(name, {out, (in + 1) / 2});
    const int64_t groups = scale.shape.size() == 2 ? scale.shape[1] : 0;
    const int group = group_of(in, groups);
    if (group == 0 || scale.shape[0] != out)
        fail(ErrorKind::checkpoint,
             "tensor %s: expected [%d, groups] with groups of 32, 64 or 128 of %d columns",
             scale.name.c_str(), out, in);
    return {4, group};
}

}  // namespace

std::optional<CodeFormat> codes_of(const TensorSource& source,
                                   const std::vector<std::string>& weights, int in,
                                   const std::vector<int>& out) {
    size_t integers = 0;
    for (const std::string& name : weights) {
        const DType dtype = source.find(name).dtype;
        integers += dtype == DType::i8 || dtype == DType::u8;
    }
    if (integers == 0) return std::nullopt;
    std::vector<CodeFormat> formats;
    if (integers == weights.size())
        for (size_t i = 0; i < weights.size(); ++i)
            formats.push_back(codes_of(source, weights[i], in, out[i]));
    for (size_t i = 0; i < weights.size(); ++i)
        if (formats.empty() || formats[i].bits != formats[0].bits ||
            formats[i].group != formats[0].group)
            fail(ErrorKind::checkpoint,
                 "tensors %s and %s are computed together: expected one format",
                 weights.front().c_str(), weights[std::max(i, size_t{1})].c_str());
    return formats[0];
}

}  // namespace smolvla

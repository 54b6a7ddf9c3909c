#include "cuda/weights.h"

#include "cuda/pack_codes.h"
#include "cuda/status.h"
#include "ops/codes.h"

namespace smolvla::cuda {
namespace {

void* upload(DeviceMemory& memory, const void* from, size_t bytes, const std::string& name,
             size_t* total) {
    void* to = memory.allocate(bytes, name.c_str());
    check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), name.c_str());
    *total += bytes;
    return to;
}

std::string joined(const std::vector<std::string>& names) {
    std::string all = names.front();
    for (size_t i = 1; i < names.size(); ++i) all += "+" + names[i];
    return all;
}

// bfloat16 only if all parts are.
Format float_format(const TensorSource& source, const std::vector<std::string>& weights, int in,
                    const std::vector<int>& out) {
    bool bf16 = true;
    for (size_t i = 0; i < weights.size(); ++i)
        bf16 = bf16 && source.expect_matrix(weights[i], out[i], in).dtype == DType::bf16;
    return bf16 ? Format::bf16 : Format::f32;
}

// Rows of every part in their stored form, one after another as the tensor has them.
std::vector<std::vector<uint8_t>> read_parts(const TensorSource& source,
                                             const std::vector<std::string>& names) {
    std::vector<std::vector<uint8_t>> parts;
    for (const std::string& name : names) {
        const TensorEntry& e = source.find(name);
        int64_t count = 1;
        for (int64_t d : e.shape) count *= d;
        parts.emplace_back(size_t(e.bytes));
        source.read(e, 0, count, parts.back().data());
    }
    return parts;
}

std::vector<std::vector<float>> read_floats(const TensorSource& source,
                                            const std::vector<std::string>& names) {
    std::vector<std::vector<float>> parts;
    for (const std::string& name : names) {
        const TensorEntry& e = source.find(name);
        int64_t count = 1;
        for (int64_t d : e.shape) count *= d;
        parts.emplace_back(size_t(count));
        source.read_f32(e, 0, count, parts.back().data());
    }
    return parts;
}

void upload_floats(DeviceLinear& w, DeviceMemory& memory, const TensorSource& source,
                   const std::vector<std::string>& weights, const std::vector<int>& out) {
    const size_t element = w.format == Format::bf16 ? 2 : 4;
    std::vector<char> rows(size_t(w.columns) * w.ld * element, 0);
    for (int r = 0; r < w.columns; ++r) {
        const RowOf from = row_of(r, out, w.gated);
        if (from.part < 0) continue;
        const TensorEntry& e = source.find(weights[size_t(from.part)]);
        char* to = &rows[size_t(r) * w.ld * element];
        if (w.format == Format::bf16)
            source.read(e, int64_t(from.row) * w.in, w.in, to);
        else
            source.read_f32(e, int64_t(from.row) * w.in, w.in, reinterpret_cast<float*>(to));
    }
    w.data = upload(memory, rows.data(), rows.size(), w.name, &w.bytes);
}

// Codes and scales of every part in their stored form, and what packing reads of them.
struct StoredCodes {
    std::vector<std::vector<uint8_t>> codes, scales;
    std::vector<CodeRows> parts;
};
StoredCodes read_codes(const TensorSource& source, const std::vector<std::string>& weights) {
    std::vector<std::string> scales;
    for (const std::string& name : weights) scales.push_back(name + ".scale");
    StoredCodes stored{read_parts(source, weights), read_parts(source, scales), {}};
    for (size_t i = 0; i < weights.size(); ++i)
        stored.parts.push_back(
            {"tensor " + weights[i], stored.codes[i].data(), stored.scales[i].data()});
    return stored;
}

void upload_i8(DeviceLinear& w, DeviceMemory& memory, const TensorSource& source,
               const std::vector<std::string>& weights, const std::vector<int>& out) {
    const PackedI8 packed =
        pack_i8(read_codes(source, weights).parts, out, w.in, w.gated, ErrorKind::checkpoint);
    w.ld = packed.ld;
    w.data = upload(memory, packed.rows.data(), packed.rows.size(), w.name, &w.bytes);
    w.scales = upload(memory, packed.scales.data(), packed.scales.size() * 4, w.name, &w.bytes);
}

void upload_i4(DeviceLinear& w, DeviceMemory& memory, const TensorSource& source,
               const std::vector<std::string>& weights, const std::vector<int>& out) {
    const PackedI4 packed = pack_i4(read_codes(source, weights).parts, out, w.in, w.group, w.gated,
                                    ErrorKind::checkpoint);
    w.columns = packed.columns;
    w.data = upload(memory, packed.words.data(), packed.words.size() * 4, w.name, &w.bytes);
    w.scales = upload(memory, packed.scales.data(), packed.scales.size() * 4, w.name, &w.bytes);
}

}  // namespace

DeviceLinear upload_linear(DeviceMemory& memory, const TensorSource& source,
                           const std::vector<std::string>& weights,
                           const std::vector<std::string>& biases, int in,
                           const std::vector<int>& out, bool gated, bool exact) {
    DeviceLinear w;
    w.name = joined(weights);
    w.in = w.ld = in;
    w.gated = gated;
    for (int rows : out) w.columns += rows;
    w.out = gated ? out[0] : w.columns;
    const std::optional<CodeFormat> codes = codes_of(source, weights, in, out);
    w.format = !codes             ? float_format(source, weights, in, out)
               : codes->bits == 8 ? Format::i8
                                  : Format::i4;
    if (gated) w.columns = rounded_up(w.out, 8) * 2;
    switch (w.format) {
        case Format::bf16:
            if (!exact) w.ld = rounded_up(in, 8);
            [[fallthrough]];
        case Format::f32: upload_floats(w, memory, source, weights, out); break;
        case Format::i8: upload_i8(w, memory, source, weights, out); break;
        case Format::i4: w.group = codes->group; upload_i4(w, memory, source, weights, out);
    }
    if (biases.empty()) return w;
    for (size_t i = 0; i < biases.size(); ++i) source.expect(biases[i], {out[i]});
    const auto values = read_floats(source, biases);
    std::vector<float> bias(size_t(w.columns), 0.0f);
    for (int r = 0; r < w.columns; ++r) {
        const RowOf from = row_of(r, out, gated);
        if (from.part >= 0) bias[size_t(r)] = values[size_t(from.part)][size_t(from.row)];
    }
    w.bias = static_cast<const float*>(
        upload(memory, bias.data(), bias.size() * 4, joined(biases), &w.bytes));
    return w;
}

DeviceLinear upload_matrix(DeviceMemory& memory, const std::string& name, const float* weight,
                           int out, int in) {
    DeviceLinear w;
    w.name = name;
    w.in = w.ld = in;
    w.out = w.columns = out;
    w.data = upload(memory, weight, size_t(out) * in * sizeof(float), name, &w.bytes);
    return w;
}

LinearInfo describe(const DeviceLinear& w, bool exact) {
    LinearInfo d{w.name, w.in, w.gated ? 2 * w.out : w.out, 32, 0, "float32", "gemm_f32", w.bytes};
    switch (w.format) {
        case Format::f32: break;
        case Format::bf16:
            d.bits = 16;
            if (!exact) d.compute = "bfloat16", d.kernel = "gemm_bf16";
            break;
        case Format::i8:
            d.bits = 8, d.group = w.in, d.compute = "int8", d.kernel = "gemm_i8";
            break;
        case Format::i4:
            d.bits = 4, d.group = std::min(w.group, w.in), d.compute = "bfloat16";
            d.kernel = "gemm_w4";
    }
    return d;
}

}  // namespace smolvla::cuda

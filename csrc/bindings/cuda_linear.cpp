// Linear layers on arrays of other libraries, and the handles of integer weights.
#include <cmath>
#include <optional>

#include "bindings/arrays.h"
#include "bindings/cuda_ops.h"
#include "bindings/made.h"
#include "cuda/memory.h"
#include "cuda/pack_codes.h"
#include "ops/codes.h"

namespace smolvla::bindings {
namespace {

// What is done to the sums: the optional arguments of every linear operator, None where not given.
struct Terms {
    explicit Terms(const py::dict& d)
        : bias(d["bias"]),
          bias_row(d["bias_row"]),
          column_scale(d["column_scale"]),
          residual(d["residual"]),
          activation(d["activation"]),
          scale(d["scale"].cast<float>()) {}
    py::object bias, bias_row, column_scale, residual, activation;
    float scale;
};

Activation parse_activation(const py::object& activation) {
    if (activation.is_none()) return Activation::none;
    const std::string name = py::str(activation);
    if (name == "gelu_tanh") return Activation::gelu_tanh;
    if (name == "silu") return Activation::silu;
    fail(ErrorKind::input, "activation: expected None, gelu_tanh or silu, got %s", name.c_str());
}

// `packed`: rows of the weight as it lies; `first`: the dtype of a new result.
cuda::Epilogue epilogue(Call& call, const Terms& t, int64_t rows, int64_t columns, int64_t packed,
                        bool gated, Element first, py::object& out) {
    cuda::Epilogue e;
    e.gated = gated;
    e.activation = parse_activation(t.activation);
    if (gated && e.activation != Activation::none)
        fail(ErrorKind::input, "activation: of a gated weight expected None (it is silu), got one");
    if (gated && !t.column_scale.is_none())
        fail(ErrorKind::input, "column_scale: of a gated weight expected None, got an array");
    if (!std::isfinite(t.scale))
        fail(ErrorKind::input, "scale: expected a finite number, got %g", double{t.scale});
    e.scale = t.scale;
    if (t.bias_row.is_none()) {
        e.bias = call.vector(t.bias, "bias", packed);
    } else {
        const DeviceArray& table = call.input(t.bias, "bias", {{Element::f32}, {-1, packed}});
        e.bias = static_cast<const float*>(table.data);
        e.bias_ld = Call::rows(table).ld;
        e.bias_row = call.number(t.bias_row, "bias_row");
    }
    e.column_scale = call.vector(t.column_scale, "column_scale", columns);
    if (!t.residual.is_none()) {
        const DeviceArray& residual =
            call.input(t.residual, "residual", {{Element::f32}, {rows, columns}});
        call.may_be_output(residual);
        e.residual = static_cast<const float*>(residual.data);
        e.residual_ld = Call::rows(residual).ld;
    }
    e.y = Call::rows(call.output(out, "out", {floats(first), {rows, columns}}));
    return e;
}

void expect_chunks(const char* name, int64_t columns) {
    if (columns % 8 != 0)
        fail(ErrorKind::input, "%s: expected a multiple of 8 bfloat16 columns, got %lld", name,
             static_cast<long long>(columns));
}

py::object linear(const py::object& x, const py::object& w, bool gated, const py::dict& terms,
                  py::object out, const py::object& caller) {
    Call call(caller);
    const DeviceArray& xs = call.input(x, "x", {{Element::f32, Element::bf16}, {-1, -1}});
    const int64_t in = xs.shape[1];
    const bool fast = xs.element == Element::bf16;
    std::vector<Element> kinds{Element::bf16};
    if (!fast) kinds = {Element::f32, Element::bf16};
    const DeviceArray& ws = call.input(w, "w", {kinds, {-1, in}, fast, fast ? 16 : 4});
    if (fast) expect_chunks("x", in), call.expect_aligned(xs, 16);
    const int64_t packed = ws.shape[0];
    if (gated && packed % 16 != 0)
        fail(ErrorKind::input, "w: expected what pack_gated made, of a multiple of 16 rows, got %s",
             ws.describe().c_str());
    const cuda::Epilogue e = epilogue(call, Terms(terms), xs.shape[0], gated ? packed / 2 : packed,
                                      packed, gated, xs.element, out);
    call.run("linear", [&](cudaStream_t stream, int processors) {
        if (!fast)
            return cuda::gemm_f32(Call::rows(xs), ws.data, ws.element == Element::bf16, int(packed),
                                  int(in), e, processors, stream);
        return cuda::gemm_bf16(Call::rows(xs), ws.data, int(Call::rows(ws).ld * 2), int(packed),
                               int(in), e, processors, stream);
    });
    return out;
}

// --- integer weights -----------------------------------------------------------------------------

struct PackedWeight : MadeByInit {
    int bits, in, out, group, columns, ld, gpu;
    bool gated;
    void *data, *scales;
    std::optional<cuda::CurrentGpu> current;  // before the memory: until it is given back
    cuda::DeviceMemory memory;

    ~PackedWeight() { current.emplace(gpu); }

    void fill(const void* codes, size_t code_bytes, const void* with, size_t scale_bytes) {
        data = memory.allocate(code_bytes, "codes");
        cuda::check(cudaMemcpy(data, codes, code_bytes, cudaMemcpyHostToDevice), "copying codes");
        scales = memory.allocate(scale_bytes, "scales");
        cuda::check(cudaMemcpy(scales, with, scale_bytes, cudaMemcpyHostToDevice),
                    "copying scales");
        // A copy returns when the host's memory was read; a caller's stream need not wait for more.
        cuda::check(cudaStreamSynchronize(nullptr), "copying codes");
    }
};

std::unique_ptr<PackedWeight> pack(const py::object& codes, const py::object& scales, int bits,
                                   int in, int group, bool gated, int gpu) {
    const bool four = bits == 4;
    if (in < 1 || in > kMaxCodes || (four && in % 8 != 0))
        fail(ErrorKind::input, "codes: expected 1 to %d columns%s, got %d", kMaxCodes,
             four ? ", a multiple of 8" : "", in);
    if (four && group != 32 && group != 64 && group != 128)
        fail(ErrorKind::input, "group_size: expected 32, 64 or 128, got %d", group);
    const int pitch = four ? (in + 1) / 2 : in, groups = four ? (in + group - 1) / group : 1;
    const void* bytes =
        four ? static_cast<const void*>(data_of<uint8_t>(codes, "codes", {-1, pitch}))
             : data_of<int8_t>(codes, "codes", {-1, pitch});
    const int rows = dim(codes, 0);
    if (rows < 1 || rows > kMaxColumns || (gated && rows % 2 != 0))
        fail(ErrorKind::input, "codes: expected %d to %lld%s rows, got %d", gated ? 2 : 1,
             static_cast<long long>(kMaxColumns), gated ? " (an even number)" : "", rows);
    const void* with =
        four ? static_cast<const void*>(data_of<uint16_t>(scales, "scales", {rows, groups}))
             : data_of<float>(scales, "scales", {rows});
    const int out = gated ? rows / 2 : rows;
    std::vector<cuda::CodeRows> parts;
    for (int part = 0; part < (gated ? 2 : 1); ++part) {
        const size_t row = size_t(part) * out;
        parts.push_back({"codes", static_cast<const uint8_t*>(bytes) + row * pitch,
                         static_cast<const char*>(with) + row * groups * (four ? 2 : 4)});
    }
    auto made = std::unique_ptr<PackedWeight>(::new PackedWeight{});
    made->bits = bits, made->in = in, made->out = out, made->gpu = gpu;
    made->group = four ? group : 0, made->gated = gated;
    GilRelease release;
    const cuda::CurrentGpu current(gpu);
    cuda::check(current.status(), "choosing the GPU");
    const std::vector<int> outs(parts.size(), out);
    if (four) {
        const cuda::PackedI4 p = cuda::pack_i4(parts, outs, in, group, gated, ErrorKind::input);
        made->columns = p.columns, made->ld = 0;
        made->fill(p.words.data(), p.words.size() * 4, p.scales.data(), p.scales.size() * 4);
    } else {
        const cuda::PackedI8 p = cuda::pack_i8(parts, outs, in, gated, ErrorKind::input);
        made->columns = p.columns, made->ld = p.ld;
        made->fill(p.rows.data(), p.rows.size(), p.scales.data(), p.scales.size() * 4);
    }
    return made;
}

py::object linear_w4a16(const py::object& x, const PackedWeight& w, const py::dict& terms,
                        py::object out, const py::object& caller) {
    Call call(caller);
    call.on_gpu(w.gpu, "w");
    const DeviceArray& xs = call.input(x, "x", {{Element::bf16}, {-1, w.in}, true, 16});
    const int64_t packed = w.gated ? (w.out + 7) / 8 * 16 : w.out;
    const cuda::Epilogue e =
        epilogue(call, Terms(terms), xs.shape[0], w.out, packed, w.gated, Element::bf16, out);
    call.run("linear_w4a16", [&](cudaStream_t stream, int processors) {
        return cuda::gemm_w4(Call::rows(xs), static_cast<const uint4*>(w.data),
                             static_cast<const uint32_t*>(w.scales), w.group, w.columns, w.in, e,
                             processors, stream);
    });
    return out;
}

// x: rows of integers when `quantized`; else floats, whose integers go into memory that the
// caller's library makes for the time of the call.
py::object linear_w8a8(const py::object& x, bool quantized, const PackedWeight& w,
                       const py::dict& terms, py::object out, const py::object& caller) {
    Call call(caller);
    call.on_gpu(w.gpu, "w");
    const DeviceArray* floats_of_x = nullptr;
    py::object integers = quantized ? x : py::none();
    if (!quantized) floats_of_x = &call.input(x, "x", {{Element::f32, Element::bf16}, {-1, w.in}});
    const DeviceArray& xs =
        quantized ? call.input(integers, "x", i8_rows(-1, w.in))
                  : call.output(integers, "x in integers", i8_rows(floats_of_x->shape[0], w.in));
    const int64_t packed = w.gated ? (w.out + 7) / 8 * 16 : w.out;
    const Element first = quantized ? Element::bf16 : floats_of_x->element;
    const cuda::Epilogue e =
        epilogue(call, Terms(terms), xs.shape[0], w.out, packed, w.gated, first, out);
    const Mat rows = i8_mat(xs, w.in);
    call.run("linear_w8a8", [&](cudaStream_t stream, int processors) {
        if (floats_of_x) {
            const cudaError_t status = cuda::quantize_rows(Call::rows(*floats_of_x), rows, stream);
            if (status != cudaSuccess) return status;
        }
        return cuda::gemm_i8(rows, w.data, w.ld, static_cast<const float*>(w.scales), w.columns,
                             w.in, e, processors, stream);
    });
    return out;
}

// gate and up [rows, in] (or [rows]) in turns, 8 rows of each.
py::object pack_gated(const py::object& gate, const py::object& up, py::object out,
                      const py::object& caller) {
    Call call(caller);
    const bool matrix = py::hasattr(gate, "shape") && py::len(gate.attr("shape")) == 2;
    const std::vector<int64_t> any =
        matrix ? std::vector<int64_t>{-1, -1} : std::vector<int64_t>{-1};
    const DeviceArray& g = call.input(gate, "gate", {{Element::f32, Element::bf16}, any, false, 2});
    const DeviceArray& u = call.input(up, "up", {{g.element}, g.shape, false, 2});
    const int64_t rows = g.shape[0];
    if (rows % 8 != 0)
        fail(ErrorKind::input, "gate: expected a multiple of 8 rows, got %s", g.describe().c_str());
    std::vector<int64_t> shape = g.shape;
    shape[0] = 2 * rows;
    const DeviceArray& y = call.output(out, "out", {{g.element}, shape, false, 2});
    const size_t eight = size_t(matrix ? g.shape[1] : 1) * size_t(element_bytes(g.element)) * 8;
    call.run("pack_gated", [&](cudaStream_t stream, int) {
        char* to = static_cast<char*>(y.data);
        for (const DeviceArray* part : {&g, &u}) {
            const cudaError_t status =
                cudaMemcpy2DAsync(to, 2 * eight, part->data, eight, eight, size_t(rows) / 8,
                                  cudaMemcpyDefault, stream);
            if (status != cudaSuccess) return status;
            to += eight;
        }
        return cudaSuccess;
    });
    return out;
}

}  // namespace

void bind_cuda_linear(py::module_& m) {
    using py::arg;
    py::class_<PackedWeight>(m, "PackedWeight",
                             "Codes and scales in GPU memory, as kernels read them.")
        .def_property_readonly("bytes",
                               [](const PackedWeight& w) { return w.memory.used_bytes(); });
    m.def("pack", &pack, arg("codes"), arg("scales"), arg("bits"), arg("columns"),
          arg("group_size"), arg("gated"), arg("device"));
    m.def("linear", &linear, arg("x"), arg("w"), arg("gated"), arg("terms"), arg("out"),
          arg("caller"));
    m.def("linear_w4a16", &linear_w4a16, arg("x"), arg("w"), arg("terms"), arg("out"),
          arg("caller"));
    m.def("linear_w8a8", &linear_w8a8, arg("x"), arg("quantized"), arg("w"), arg("terms"),
          arg("out"), arg("caller"));
    m.def("pack_gated", &pack_gated, arg("gate"), arg("up"), arg("out"), arg("caller"));
}

}  // namespace smolvla::bindings

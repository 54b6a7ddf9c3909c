// Norms, rounding to integers, copies, picking, sums, comparisons and the flow's step, on arrays of
// other libraries.
#include <pybind11/stl.h>

#include <cmath>

#include "bindings/cuda_ops.h"

namespace smolvla::bindings {
namespace {

// bias None: RMSNorm. `quantized`: out is rows of integers, else of `dtype`.
py::object norm(const py::object& x, const py::object& weight, const py::object& bias, bool center,
                float eps, const std::string& dtype, bool quantized, py::object out,
                const py::object& caller) {
    Call call(caller);
    if (!(eps >= 0 && std::isfinite(eps)))
        fail(ErrorKind::input, "eps: expected a finite number of 0 or more, got %g", double{eps});
    const DeviceArray& xs = call.input(x, "x", {{Element::f32}, {-1, -1}});
    const int64_t rows = xs.shape[0], columns = xs.shape[1];
    const float* w = call.vector(weight, "weight", columns);
    if (!w)
        fail(ErrorKind::input, "weight: expected float32 [%lld], got None",
             static_cast<long long>(columns));
    const float* b = call.vector(bias, "bias", columns);
    const Element first = float_element(dtype);
    const DeviceArray& ys = call.output(
        out, "out", quantized ? i8_rows(rows, columns) : Wanted{floats(first), xs.shape});
    const Mat y = quantized ? i8_mat(ys, int(columns)) : Call::rows(ys);
    call.run(center ? "layer_norm" : "rms_norm", [&](cudaStream_t stream, int) {
        return cuda::norm(Call::rows(xs), w, b, center, eps, y, stream);
    });
    return out;
}

py::object quantize_rows(const py::object& x, py::object out, const py::object& caller) {
    Call call(caller);
    const DeviceArray& xs = call.input(x, "x", {floats(Element::f32), {-1, -1}});
    const DeviceArray& ys = call.output(out, "out", i8_rows(xs.shape[0], xs.shape[1]));
    call.run("quantize_rows", [&](cudaStream_t stream, int) {
        return cuda::quantize_rows(Call::rows(xs), i8_mat(ys, int(xs.shape[1])), stream);
    });
    return out;
}

py::object copy_rows(const py::object& x, float scale, const std::string& dtype, py::object out,
                     const py::object& caller) {
    Call call(caller);
    const DeviceArray& xs = call.input(x, "x", {floats(Element::f32), {-1, -1}});
    const DeviceArray& ys = call.output(out, "out", {floats(float_element(dtype)), xs.shape});
    call.run("copy_rows", [&](cudaStream_t stream, int) {
        return cuda::copy_rows(Call::rows(xs), scale, Call::rows(ys), int(xs.shape[1]), stream);
    });
    return out;
}

py::object pick_rows(const py::object& x, const py::object& ids, py::object out,
                     const py::object& caller) {
    Call call(caller);
    const DeviceArray& xs = call.input(x, "x", {{Element::f32}, {-1, -1}});
    const DeviceArray& chosen = call.input(ids, "ids", {{Element::i32}, {-1}, false});
    const DeviceArray& ys =
        call.output(out, "out", {{Element::f32}, {chosen.shape[0], xs.shape[1]}});
    call.run("pick_rows", [&](cudaStream_t stream, int) {
        return cuda::pick_rows(Call::rows(xs), static_cast<const int*>(chosen.data), Call::rows(ys),
                               stream);
    });
    return out;
}

void put_rows(const py::object& x, const py::object& ids, const py::object& out,
              const py::object& caller) {
    Call call(caller);
    const DeviceArray& xs = call.input(x, "x", {{Element::f32}, {-1, -1}});
    const int* where = call.numbers(ids, "ids", xs.shape[0]);
    const DeviceArray& ys = call.updated(out, "out", {{Element::f32}, {-1, xs.shape[1]}});
    call.run("put_rows", [&](cudaStream_t stream, int) {
        return cuda::put_rows(Call::rows(xs), where, Call::rows(ys), stream);
    });
}

py::object add_rows(const py::object& x, const py::object& z, float scale, py::object out,
                    const py::object& caller) {
    Call call(caller);
    const DeviceArray& xs = call.input(x, "x", {{Element::f32}, {-1, -1}});
    const DeviceArray& zs = call.input(z, "z", {{Element::f32}, xs.shape});
    call.may_be_output(xs), call.may_be_output(zs);
    const DeviceArray& ys = call.output(out, "out", {{Element::f32}, xs.shape});
    call.run("add_rows", [&](cudaStream_t stream, int) {
        return cuda::add_rows(Call::rows(xs), Call::rows(zs), scale, Call::rows(ys), stream);
    });
    return out;
}

// columns None: all.
py::object compare_rows(const py::object& a, const py::object& b, std::optional<int> columns,
                        py::object out, const py::object& caller) {
    Call call(caller);
    const DeviceArray& as = call.input(a, "a", {{Element::f32}, {-1, -1}});
    const DeviceArray& bs = call.input(b, "b", {{Element::f32}, as.shape});
    const int all = int(as.shape[1]), compared = columns.value_or(all);
    if (compared < 1 || compared > all)
        fail(ErrorKind::input, "columns: expected None or 1 to %d, got %d", all, compared);
    const DeviceArray& ys = call.output(out, "out", {{Element::f32}, {as.shape[0], 5}});
    call.run("compare_rows", [&](cudaStream_t stream, int) {
        return cuda::compare_rows(Call::rows(as), Call::rows(bs), compared, Call::rows(ys), stream);
    });
    return out;
}

void flow_step(const py::object& x, const py::object& velocity, const py::object& schedule,
               const py::object& step, const py::object& previous, const py::object& weight,
               const py::object& last, const py::object& caller) {
    Call call(caller);
    const DeviceArray& xs = call.updated(x, "x", {{Element::f32}, {-1, -1}});
    const DeviceArray& vs = call.input(velocity, "velocity", {{Element::f32}, xs.shape});
    const int64_t numbers = last.is_none() ? 3 : 5;
    const DeviceArray& table = call.input(schedule, "schedule", {{Element::f32}, {-1, numbers}});
    const int* row = call.number(step, "step");
    if (!row) fail(ErrorKind::input, "step: expected an int32 in GPU memory, got None");
    Pull pull;
    if (previous.is_none() != weight.is_none())
        fail(ErrorKind::input, "previous, weight: expected both or neither, got one");
    if (!previous.is_none()) {
        pull.previous = Call::rows(call.input(previous, "previous", {{Element::f32}, xs.shape}));
        pull.weight = call.vector(weight, "weight", xs.shape[0]);
    }
    Mat before;
    if (!last.is_none())
        before = Call::rows(call.updated(last, "last", {{Element::f32}, xs.shape}));
    call.run("flow_step", [&](cudaStream_t stream, int) {
        return cuda::flow_update(Call::rows(xs), Call::rows(vs), Call::rows(table), row, pull,
                                 before, stream);
    });
}

void advance(const py::object& number, const py::object& caller) {
    Call call(caller);
    const DeviceArray& n = call.updated(number, "number", {{Element::i32}, {1}});
    call.run("advance", [&](cudaStream_t stream, int) {
        return cuda::advance(static_cast<int*>(n.data), stream);
    });
}

}  // namespace

void bind_cuda_rows(py::module_& m) {
    using py::arg;
    m.def("norm", &norm, arg("x"), arg("weight"), arg("bias"), arg("center"), arg("eps"),
          arg("dtype"), arg("quantized"), arg("out"), arg("caller"));
    m.def("quantize_rows", &quantize_rows, arg("x"), arg("out"), arg("caller"));
    m.def("quantized_row_bytes", &i8_row_bytes, arg("columns"));
    m.def(
        "quantized_scale_word", [](int columns) { return scale_at(code_words(columns)); },
        arg("columns"));
    m.def("copy_rows", &copy_rows, arg("x"), arg("scale"), arg("dtype"), arg("out"), arg("caller"));
    m.def("pick_rows", &pick_rows, arg("x"), arg("ids"), arg("out"), arg("caller"));
    m.def("put_rows", &put_rows, arg("x"), arg("ids"), arg("out"), arg("caller"));
    m.def("add_rows", &add_rows, arg("x"), arg("z"), arg("scale"), arg("out"), arg("caller"));
    m.def("compare_rows", &compare_rows, arg("a"), arg("b"), arg("columns"), arg("out"),
          arg("caller"));
    m.def("flow_step", &flow_step, arg("x"), arg("velocity"), arg("schedule"), arg("step"),
          arg("previous"), arg("weight"), arg("last"), arg("caller"));
    m.def("advance", &advance, arg("number"), arg("caller"));
}

}  // namespace smolvla::bindings

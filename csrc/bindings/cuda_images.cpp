// From camera frames to the rows that the vision tower takes, on arrays of other libraries.
#include "bindings/cuda_ops.h"

namespace smolvla::bindings {
namespace {

constexpr int kMaxSide = 8192;

py::object letterbox(const py::object& frame, int height, int width, py::object out,
                     const py::object& caller) {
    Call call(caller);
    if (height < 1 || width < 1 || height > kMaxSide || width > kMaxSide)
        fail(ErrorKind::input, "height, width: expected 1 to %d, got %d x %d", kMaxSide, height,
             width);
    const DeviceArray& fs =
        call.input(frame, "frame", {{Element::u8, Element::f32}, {-1, -1, 3}, false, 1});
    const bool is_u8 = fs.element == Element::u8;
    if (!is_u8) call.expect_aligned(fs, 4);
    const DeviceArray& ys = call.output(out, "out", {{Element::f32}, {3, height, width}, false});
    const Frame f{fs.data, is_u8, int(fs.shape[0]), int(fs.shape[1])};
    call.run("letterbox", [&](cudaStream_t stream, int) {
        return cuda::letterbox(f, static_cast<float*>(ys.data), height, width, stream);
    });
    return out;
}

py::object patchify(const py::object& pixels, int patch, const std::string& dtype, py::object out,
                    const py::object& caller) {
    Call call(caller);
    const DeviceArray& ps = call.input(pixels, "pixels", {{Element::f32}, {3, -1, -1}, false});
    const int height = int(ps.shape[1]), width = int(ps.shape[2]);
    if (patch < 1 || height % patch != 0 || width % patch != 0)
        fail(ErrorKind::input, "patch: expected a divisor of %d and %d, got %d", height, width,
             patch);
    const int64_t rows = int64_t(height / patch) * (width / patch);
    const DeviceArray& ys =
        call.output(out, "out", {floats(float_element(dtype)), {rows, int64_t{3} * patch * patch}});
    call.run("patchify", [&](cudaStream_t stream, int) {
        return cuda::patchify(static_cast<const float*>(ps.data), height, width, patch,
                              Call::rows(ys), stream);
    });
    return out;
}

py::object pixel_shuffle(const py::object& x, int scale, py::object out, const py::object& caller) {
    Call call(caller);
    const DeviceArray& xs = call.input(x, "x", {floats(Element::f32), {-1, -1}});
    int side = 1;
    while (int64_t{side} * side < xs.shape[0]) ++side;
    if (scale < 1 || int64_t{side} * side != xs.shape[0] || side % scale != 0)
        fail(ErrorKind::input,
             "x: expected a square of rows, its side a multiple of scale = %d, got %s", scale,
             xs.describe().c_str());
    const int64_t across = side / scale, columns = xs.shape[1] * scale * scale;
    const DeviceArray& ys =
        call.output(out, "out", {floats(xs.element), {across * across, columns}});
    call.run("pixel_shuffle", [&](cudaStream_t stream, int) {
        return cuda::pixel_shuffle(Call::rows(xs), side, scale, Call::rows(ys), stream);
    });
    return out;
}

}  // namespace

void bind_cuda_images(py::module_& m) {
    using py::arg;
    m.def("letterbox", &letterbox, arg("frame"), arg("height"), arg("width"), arg("out"),
          arg("caller"));
    m.def("patchify", &patchify, arg("pixels"), arg("patch"), arg("dtype"), arg("out"),
          arg("caller"));
    m.def("pixel_shuffle", &pixel_shuffle, arg("x"), arg("scale"), arg("out"), arg("caller"));
}

}  // namespace smolvla::bindings

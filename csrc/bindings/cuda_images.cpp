// From camera frames to the rows that the vision tower takes, on arrays of other libraries.
#include "bindings/cuda_ops.h"

namespace smolvla::bindings {
namespace {

constexpr int kMaxSide = 8192;

Wanted wanted_pixels() { return {{Element::f32}, {3, -1, -1}, false}; }

// pixels [3, height, width] in whole squares of `side`.
struct Squares {
    Squares(const DeviceArray& pixels, int64_t side, const char* what)
        : height(int(pixels.shape[1])), width(int(pixels.shape[2])) {
        if (side < 1 || height % side != 0 || width % side != 0)
            fail(ErrorKind::input, "%s: expected a divisor of %d and %d, got %lld", what, height,
                 width, static_cast<long long>(side));
        down = int(height / side), across = int(width / side);
    }
    int height, width, down, across;
};

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

// ids None: every patch.
py::object patchify(const py::object& pixels, int patch, const py::object& ids,
                    const std::string& dtype, py::object out, const py::object& caller) {
    Call call(caller);
    const DeviceArray& ps = call.input(pixels, "pixels", wanted_pixels());
    const Squares patches(ps, patch, "patch");
    int64_t rows = int64_t{patches.down} * patches.across;
    const int* numbers = nullptr;
    if (!ids.is_none()) {
        const DeviceArray& chosen = call.input(ids, "ids", {{Element::i32}, {-1}, false});
        rows = chosen.shape[0];
        numbers = static_cast<const int*>(chosen.data);
    }
    const DeviceArray& ys =
        call.output(out, "out", {floats(float_element(dtype)), {rows, int64_t{3} * patch * patch}});
    call.run("patchify", [&](cudaStream_t stream, int) {
        return cuda::patchify(static_cast<const float*>(ps.data), patches.height, patches.width,
                              patch, numbers, Call::rows(ys), stream);
    });
    return out;
}

py::object block_change(const py::object& pixels, const py::object& reference, int patch, int scale,
                        py::object out, const py::object& caller) {
    Call call(caller);
    const DeviceArray& ps = call.input(pixels, "pixels", wanted_pixels());
    const DeviceArray& rs = call.input(reference, "reference", {{Element::f32}, ps.shape, false});
    if (patch < 1 || scale < 1)
        fail(ErrorKind::input, "patch, scale: expected 1 or more, got %d and %d", patch, scale);
    const Squares blocks(ps, int64_t{patch} * scale, "patch * scale");
    const DeviceArray& ys =
        call.output(out, "out", {{Element::f32}, {blocks.down, blocks.across}, false});
    call.run("block_change", [&](cudaStream_t stream, int) {
        return cuda::block_change(static_cast<const float*>(ps.data),
                                  static_cast<const float*>(rs.data), blocks.height, blocks.width,
                                  patch, scale, static_cast<float*>(ys.data), stream);
    });
    return out;
}

void copy_blocks(const py::object& pixels, const py::object& ids, int side, const py::object& out,
                 const py::object& caller) {
    Call call(caller);
    const DeviceArray& ps = call.input(pixels, "pixels", wanted_pixels());
    const DeviceArray& chosen = call.input(ids, "ids", {{Element::i32}, {-1}, false});
    const DeviceArray& ys = call.updated(out, "out", {{Element::f32}, ps.shape, false});
    const Squares blocks(ps, side, "side");
    call.run("copy_blocks", [&](cudaStream_t stream, int) {
        return cuda::copy_blocks(static_cast<const float*>(ps.data), blocks.height, blocks.width,
                                 side, static_cast<const int*>(chosen.data), int(chosen.shape[0]),
                                 static_cast<float*>(ys.data), stream);
    });
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
    m.def("patchify", &patchify, arg("pixels"), arg("patch"), arg("ids"), arg("dtype"), arg("out"),
          arg("caller"));
    m.def("block_change", &block_change, arg("pixels"), arg("reference"), arg("patch"),
          arg("scale"), arg("out"), arg("caller"));
    m.def("copy_blocks", &copy_blocks, arg("pixels"), arg("ids"), arg("side"), arg("out"),
          arg("caller"));
    m.def("pixel_shuffle", &pixel_shuffle, arg("x"), arg("scale"), arg("out"), arg("caller"));
}

}  // namespace smolvla::bindings

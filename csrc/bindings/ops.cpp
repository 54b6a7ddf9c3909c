// _core.CpuOps: single operations of the CPU backend, for tests and microbenchmarks. The engine
// does not go through here.
#include <pybind11/stl.h>

#include <array>
#include <mutex>

#include "bindings/engine.h"
#include "bindings/gil.h"
#include "bindings/made.h"
#include "runtime/threads.h"

namespace smolvla::bindings {
namespace {

Mat view(const float* data, py::ssize_t rows, py::ssize_t cols) {
    return {const_cast<float*>(data), static_cast<int>(rows), static_cast<int>(cols), cols};
}

int within(const char* name, int value, int low, int high) {
    if (value < low || value > high)
        fail(ErrorKind::input, "%s = %d is outside [%d, %d]", name, value, low, high);
    return value;
}

class CpuOps : public MadeByInit {
public:
    CpuOps(int threads, const std::string& isa, const std::string& compute)
        : ops_(make_cpu_backend(size_t{1} << 30, size_t{1} << 30,
                                within("threads", threads, 1, kMaxThreads), isa,
                                parse_compute(compute))) {}

    // A copy of x [rows, cols] as the engine would store it between layers; returns a handle that
    // `linear` and `attention` take in place of an array.
    size_t make_activation(const py::object& x) {
        const float* from = data_of<float>(x, "x", {-1, -1});
        const int rows = dim(x, 0), cols = dim(x, 1);
        within("rows", rows, 1, kMaxSize);
        within("cols", cols, 1, kMaxSize);
        const std::lock_guard<std::mutex> lock(mutex_);
        const Mat made = ops_->make_activation(rows, cols, cols);
        ops_->copy(view(from, rows, cols), 1.0f, made);
        activations_.push_back(made);
        return activations_.size() - 1;
    }

    // What an activation holds, float32 [rows, cols].
    py::array_t<float> read_activation(size_t handle) {
        const Mat x = activations_.at(handle);
        py::array_t<float> out({x.rows, x.cols});
        for (int r = 0; r < x.rows; ++r)
            for (int c = 0; c < x.cols; ++c) out.mutable_at(r, c) = x.value(r, c);
        return out;
    }

    // A raw file of [out, in] elements (two stacked matrices when gated); returns a handle.
    size_t load_linear(const std::string& path, const std::string& dtype, int out, int in,
                       bool gated) {
        const DType type = parse_dtype(dtype);
        within("out", out, gated ? 2 : 1, kMaxSize);
        within("in", in, 1, kMaxSize);
        if (gated && out % 2 != 0)
            fail(ErrorKind::input, "out: expected an even number of gated rows, got %d", out);
        const int rows = gated ? out / 2 : out;
        const uint64_t bytes = uint64_t(rows) * in * dtype_bytes(type);
        std::vector<TensorEntry> entries;
        std::vector<std::string> names;
        std::vector<int> outs;
        for (int part = 0; part < (gated ? 2 : 1); ++part) {
            names.push_back(std::to_string(part));
            outs.push_back(rows);
            entries.push_back({names.back(), type, {rows, in}, path, part * bytes, bytes});
        }
        const TensorSource source(entries);
        const Linear* made;
        {
            GilRelease release;
            const std::lock_guard<std::mutex> lock(mutex_);
            made = ops_->load_linear(source, names, {}, in, outs, gated);
        }
        linears_.push_back({made, rows, in});
        return linears_.size() - 1;
    }

    // Codes in a raw file, int8 ("I8") or int4 ("U8") of cpu/pack_codes.h, followed by their
    // scales, `groups` for each row; returns a handle as load_linear does. Its x must come from
    // make_activation, which leaves room for a row's integers.
    size_t load_codes(const std::string& path, const std::string& dtype, int out, int in,
                      int groups) {
        const DType type = parse_dtype(dtype);
        if (type != DType::i8 && type != DType::u8)
            fail(ErrorKind::input, "dtype: expected I8 or U8, got %s", dtype.c_str());
        within("out", out, 1, kMaxSize);
        within("in", in, 1, kMaxSize);
        within("groups", groups, 1, in);
        const bool four = type == DType::u8;
        if (!four && groups != 1)
            fail(ErrorKind::input, "groups: expected 1 for I8, got %d", groups);
        const int pitch = four ? (in + 1) / 2 : in;
        const uint64_t bytes = uint64_t(out) * pitch;
        const TensorEntry codes{"w", type, {out, pitch}, path, 0, bytes};
        const TensorEntry scales =
            four ? TensorEntry{"w.scale", DType::f16, {out, groups},
                               path,      bytes,      uint64_t{2} * out * groups}
                 : TensorEntry{"w.scale", DType::f32, {out}, path, bytes, uint64_t{4} * out};
        const TensorSource source({codes, scales});
        const Linear* made;
        {
            GilRelease release;
            const std::lock_guard<std::mutex> lock(mutex_);
            made = ops_->load_linear(source, {"w"}, {}, in, {out}, false);
        }
        linears_.push_back({made, out, in});
        return linears_.size() - 1;
    }

    void linear(size_t handle, const py::object& x, const py::object& y, const py::object& bias,
                const std::string& activation, const py::object& residual, float scale) {
        const Weight w = linears_.at(handle);
        const Mat from = operand(x, "x", {-1, w.in});
        const int rows = from.rows;
        const Mat to = result(y, "y", rows, w.out);
        LinearOptions o;
        // The kernels read biases in whole panels.
        if (!bias.is_none()) o.bias = data_of<float>(bias, "bias", {(w.out + 31) / 32 * 32});
        if (!residual.is_none())
            o.residual = view(data_of<float>(residual, "residual", {rows, w.out}), rows, w.out);
        if (activation == "gelu_tanh")
            o.activation = Activation::gelu_tanh;
        else if (activation == "silu")
            o.activation = Activation::silu;
        else if (activation != "none")
            fail(ErrorKind::input, "activation: expected none, gelu_tanh or silu, got %s",
                 activation.c_str());
        o.scale = scale;
        GilRelease release;
        const std::lock_guard<std::mutex> lock(mutex_);
        ops_->linear(from, w.linear, to, o);
    }

    size_t make_kv(int kv_heads, int head_dim, int capacity) {
        within("kv_heads", kv_heads, 1, kMaxSize);
        within("head_dim", head_dim, 1, kMaxSize);
        within("capacity", capacity, 1, kMaxSize);
        KvStore* made;
        {
            GilRelease release;
            const std::lock_guard<std::mutex> lock(mutex_);
            made = ops_->make_kv(kv_heads, head_dim, capacity);
        }
        kvs_.push_back({made, kv_heads, head_dim, capacity});
        return kvs_.size() - 1;
    }

    void store_kv(size_t handle, const py::object& keys, const py::object& values, int first) {
        const Kv kv = kvs_.at(handle);
        const int cols = kv.heads * kv.head_dim;
        const float* k = data_of<float>(keys, "keys", {-1, cols});
        const int rows = within("rows of keys", dim(keys, 0), 0, kv.capacity);
        const float* v = data_of<float>(values, "values", {rows, cols});
        within("first", first, 0, kv.capacity - rows);
        GilRelease release;
        const std::lock_guard<std::mutex> lock(mutex_);
        ops_->store_kv(view(k, rows, cols), view(v, rows, cols), kv.store, &first);
    }

    void attention(size_t handle, const py::object& q, const py::object& lengths,
                   const py::object& out, int heads, int kv_heads) {
        const Kv kv = kvs_.at(handle);
        within("kv_heads", kv_heads, kv.heads, kv.heads);
        within("heads", heads, kv_heads, kMaxSize);
        if (heads % kv_heads != 0)
            fail(ErrorKind::input, "heads: expected a multiple of kv_heads = %d, got %d", kv_heads,
                 heads);
        const int cols = within("heads * head_dim", heads * kv.head_dim, 1, kMaxSize);
        const Mat from = operand(q, "q", {-1, cols});
        const int rows = from.rows;
        const int* counts = data_of<int>(lengths, "lengths", {rows});
        for (int r = 0; r < rows; ++r) within("a length", counts[r], 1, kv.capacity);
        const Mat to = result(out, "out", rows, cols);
        const bool stored = py::isinstance<py::int_>(q) || py::isinstance<py::int_>(out);
        if (stored && kv.head_dim % 2 != 0)  // a head may begin inside a pair of bfloat16
            fail(ErrorKind::input, "head_dim: activations need an even one, got %d; pass arrays",
                 kv.head_dim);
        const AttentionShape shape{heads, kv_heads, kv.head_dim, counts};
        GilRelease release;
        const std::lock_guard<std::mutex> lock(mutex_);
        ops_->attention(from, kv.store, shape, to);
    }

private:
    static constexpr int kMaxSize = 1 << 16;
    struct Weight {
        const Linear* linear;
        int out, in;
    };
    // An array, or the handle of an activation; -1: any count of rows.
    Mat operand(const py::object& x, const char* name, std::array<int, 2> shape) const {
        if (!py::isinstance<py::int_>(x)) {
            const float* data = data_of<float>(x, name, {shape[0], shape[1]});
            return view(data, dim(x, 0), shape[1]);
        }
        const Mat m = activations_.at(x.cast<size_t>());
        if ((shape[0] >= 0 && m.rows != shape[0]) || m.cols != shape[1])
            fail(ErrorKind::input, "%s: the activation is [%d, %d], expected [%d, %d]", name,
                 m.rows, m.cols, shape[0], shape[1]);
        return m;
    }

    // As operand, to be written.
    Mat result(const py::object& y, const char* name, int rows, int cols) const {
        if (py::isinstance<py::int_>(y)) return operand(y, name, {rows, cols});
        return view(mutable_data_of<float>(y, name, {rows, cols}), rows, cols);
    }

    struct Kv {
        KvStore* store;
        int heads, head_dim, capacity;
    };
    std::mutex mutex_;  // of ops_; taken without the GIL, which guards the handles
    std::unique_ptr<Backend> ops_;
    std::vector<Weight> linears_;
    std::vector<Kv> kvs_;
    std::vector<Mat> activations_;
};

}  // namespace

void bind_ops(py::module_& m) {
    using py::arg;
    py::class_<CpuOps>(m, "CpuOps", "Single operations of the CPU backend; see csrc/ops/ops.h.")
        .def(py::init(&make<CpuOps, int, const std::string&, const std::string&>),
             arg("threads") = 1, arg("isa") = "", arg("compute") = "float32")
        .def("make_activation", &CpuOps::make_activation, arg("x"))
        .def("read_activation", &CpuOps::read_activation, arg("activation"))
        .def("load_linear", &CpuOps::load_linear, arg("path"), arg("dtype"), arg("out"), arg("in"),
             arg("gated") = false)
        .def("load_codes", &CpuOps::load_codes, arg("path"), arg("dtype"), arg("out"), arg("in"),
             arg("groups") = 1)
        .def("linear", &CpuOps::linear, arg("weight"), arg("x"), arg("y"), arg("bias") = py::none(),
             arg("activation") = "none", arg("residual") = py::none(), arg("scale") = 1.0f)
        .def("make_kv", &CpuOps::make_kv, arg("kv_heads"), arg("head_dim"), arg("capacity"))
        .def("store_kv", &CpuOps::store_kv, arg("kv"), arg("keys"), arg("values"), arg("first"))
        .def("attention", &CpuOps::attention, arg("kv"), arg("q"), arg("lengths"), arg("out"),
             arg("heads"), arg("kv_heads"));
}

}  // namespace smolvla::bindings

// _core.CpuOps: single operations of the CPU backend, for tests and microbenchmarks. The engine
// does not go through here.
#include <pybind11/stl.h>

#include "bindings/engine.h"

namespace smolvla::bindings {
namespace {

Mat view(const float* data, py::ssize_t rows, py::ssize_t cols) {
    return {const_cast<float*>(data), static_cast<int>(rows), static_cast<int>(cols), cols};
}

class CpuOps {
public:
    CpuOps(int threads, const std::string& isa)
        : ops_(make_cpu_backend(size_t{1} << 30, size_t{1} << 30, threads, isa)) {}

    // A raw file of [out, in] elements (two stacked matrices when gated); returns a handle.
    size_t load_linear(const std::string& path, const std::string& dtype, int out, int in,
                       bool gated) {
        const DType type = parse_dtype(dtype);
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
        linears_.push_back({ops_->load_linear(source, names, {}, in, outs, gated), rows, in});
        return linears_.size() - 1;
    }

    void linear(size_t handle, const py::object& x, const py::object& y, const py::object& bias,
                const std::string& activation, const py::object& residual, float scale) {
        const Weight& w = linears_.at(handle);
        const float* from = data_of<float>(x, "x", {-1, w.in});
        const py::ssize_t rows = dim(x, 0);
        const float* to = data_of<float>(y, "y", {rows, w.out});
        LinearOptions o;
        // The kernels read biases in whole panels.
        if (!bias.is_none()) o.bias = data_of<float>(bias, "bias", {(w.out + 31) / 32 * 32});
        if (!residual.is_none())
            o.residual = view(data_of<float>(residual, "residual", {rows, w.out}), rows, w.out);
        if (activation == "gelu_tanh") o.activation = Activation::gelu_tanh;
        if (activation == "silu") o.activation = Activation::silu;
        o.scale = scale;
        py::gil_scoped_release release;
        ops_->linear(view(from, rows, w.in), w.linear, view(to, rows, w.out), o);
    }

    size_t make_kv(int kv_heads, int head_dim, int capacity) {
        kvs_.push_back(ops_->make_kv(kv_heads, head_dim, capacity));
        return kvs_.size() - 1;
    }

    void store_kv(size_t handle, const py::object& keys, const py::object& values, int first) {
        const float* k = data_of<float>(keys, "keys", {-1, -1});
        const py::ssize_t rows = dim(keys, 0), cols = dim(keys, 1);
        const float* v = data_of<float>(values, "values", {rows, cols});
        ops_->store_kv(view(k, rows, cols), view(v, rows, cols), kvs_.at(handle), first);
    }

    void attention(size_t handle, const py::object& q, const py::object& lengths,
                   const py::object& out, int heads, int kv_heads) {
        const float* from = data_of<float>(q, "q", {-1, -1});
        const py::ssize_t rows = dim(q, 0), cols = dim(q, 1);
        const int* counts = data_of<int>(lengths, "lengths", {rows});
        const float* to = data_of<float>(out, "out", {rows, cols});
        const AttentionShape shape{heads, kv_heads, static_cast<int>(cols) / heads, counts};
        py::gil_scoped_release release;
        ops_->attention(view(from, rows, cols), kvs_.at(handle), shape, view(to, rows, cols));
    }

private:
    struct Weight {
        const Linear* linear;
        int out, in;
    };
    std::unique_ptr<Backend> ops_;
    std::vector<Weight> linears_;
    std::vector<KvStore*> kvs_;
};

}  // namespace

void bind_ops(py::module_& m) {
    using py::arg;
    py::class_<CpuOps>(m, "CpuOps", "Single operations of the CPU backend; see csrc/ops/ops.h.")
        .def(py::init<int, const std::string&>(), arg("threads") = 1, arg("isa") = "")
        .def("load_linear", &CpuOps::load_linear, arg("path"), arg("dtype"), arg("out"), arg("in"),
             arg("gated") = false)
        .def("linear", &CpuOps::linear, arg("weight"), arg("x"), arg("y"), arg("bias") = py::none(),
             arg("activation") = "none", arg("residual") = py::none(), arg("scale") = 1.0f)
        .def("make_kv", &CpuOps::make_kv, arg("kv_heads"), arg("head_dim"), arg("capacity"))
        .def("store_kv", &CpuOps::store_kv, arg("kv"), arg("keys"), arg("values"), arg("first"))
        .def("attention", &CpuOps::attention, arg("kv"), arg("q"), arg("lengths"), arg("out"),
             arg("heads"), arg("kv_heads"));
}

}  // namespace smolvla::bindings

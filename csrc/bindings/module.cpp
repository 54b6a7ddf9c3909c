// The module smolvla_edge._core: free functions and the translation of errors.
#include "bindings/engine.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "bindings/cuda.h"
#include "bindings/gil.h"
#include "cpu/image.h"
#include "cpu/int8_peak.h"
#include "cpu/isa.h"
#include "runtime/philox.h"
#include "runtime/threads.h"

namespace smolvla::bindings {
namespace {

void translate(const Error& error) {
    static const char* const names[] = {"CheckpointError", "InputError", "BackendError",
                                        "NonFiniteError"};
    const py::object type =
        py::module_::import("smolvla_edge.errors").attr(names[static_cast<int>(error.kind)]);
    // Paths and environment variables in the text need not be UTF-8.
    const std::string text = error.what();
    PyObject* message =
        PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace");
    PyErr_SetObject(type.ptr(), py::reinterpret_steal<py::object>(message).ptr());
}

py::array_t<float> normal(uint64_t seed, size_t rows, size_t cols) {
    py::array_t<float> out({rows, cols});
    philox_normal(seed, rows * cols, out.mutable_data());
    return out;
}

// GFLOP/s that `threads` cores reach on products in registers: the ceiling reports divide by.
// kind: "float32" (fused multiply-adds), "bfloat16" (pair products; refused without them) or "int8"
// (sums of four products, of the best instruction of this CPU whatever `isa` is).
double peak(int threads, const std::string& isa, double milliseconds, const std::string& kind) {
    const cpu::Kernels kernels = cpu::choose_kernels(isa);
    const auto chain = kind == "int8"                            ? cpu::int8_chain()
                       : parse_compute(kind) == Compute::float32 ? kernels.fma_chain
                                                                 : kernels.words_chain;
    if (!chain)
        fail(ErrorKind::backend, "ISA %s has no %s products on this CPU", kernels.isa,
             kind.c_str());
    if (threads < 0 || threads > kMaxThreads)
        fail(ErrorKind::input, "threads: expected 0 (automatic) to %d, got %d", kMaxThreads,
             threads);
    if (!(milliseconds > 0 && milliseconds <= 60e3))
        fail(ErrorKind::input, "milliseconds: expected more than 0, at most 60000, got %g",
             milliseconds);
    if (threads == 0) threads = default_threads();
    std::vector<double> rate(static_cast<size_t>(threads));
    GilRelease release;
    ThreadPool pool(threads);
    std::atomic<int> arrived{0};
    pool.run(threads, [&](int item, int) {
        using clock = std::chrono::steady_clock;
        // All at once: a thread that comes late would be measured alone.
        for (++arrived; arrived < threads;) std::this_thread::yield();
        chain(100000);  // wake the clocks
        double flops = 0, seconds = 0;
        for (const auto start = clock::now(); seconds * 1e3 < milliseconds;) {
            flops += chain(200000);
            seconds = std::chrono::duration<double>(clock::now() - start).count();
        }
        rate[static_cast<size_t>(item)] = flops / seconds * 1e-9;
    });
    double sum = 0;
    for (double r : rate) sum += r;
    return sum;
}

py::dict cpu_info() {
    const cpu::CpuFeatures f = cpu::detect_features();
    py::dict d;
    d["fma"] = f.fma;
    d["avx2"] = f.avx2;
    d["avx512"] = f.avx512;
    d["avx512_bf16"] = f.avx512_bf16;
    d["avx512_vnni"] = f.avx512_vnni;
    d["avx_vnni"] = f.avx_vnni;
    d["asimd"] = f.asimd;
    d["fp16"] = f.fp16;
    d["dotprod"] = f.dotprod;
    d["bf16"] = f.bf16;
    d["i8mm"] = f.i8mm;
    d["sve"] = f.sve;
    d["threads"] = default_threads();
    d["isa"] = cpu::choose_kernels("").isa;
    return d;
}

py::list kernel_table(const std::string& isa) {
    py::list rows;
    for (const cpu::KernelRow& r : cpu::kernel_table(cpu::choose_kernels(isa))) {
        py::dict d;
        d["op"] = r.op;
        d["kernel"] = r.kernel;
        d["isa"] = r.isa;
        d["needs"] = r.needs;
        d["supported"] = r.supported;
        d["chosen"] = r.chosen;
        rows.append(d);
    }
    return rows;
}

py::array_t<float> letterbox(const py::object& frame, int width, int height) {
    if (frame.is_none()) fail(ErrorKind::input, "frame: expected a numpy array, got None");
    const Frame f = frame_of(frame, "frame");
    if (width < 1 || height < 1 || width > 8192 || height > 8192)
        fail(ErrorKind::input, "letterbox to %d x %d is outside 1..8192", width, height);
    py::array_t<float> out({3, height, width});
    const cpu::Letterbox box(f, height, width);
    for (int y = 0; y < height; ++y) box.row(y, out.mutable_data());
    return out;
}

}  // namespace
}  // namespace smolvla::bindings

#ifdef SMOLVLA_CUDA_EMULATED
void bind_emulator(pybind11::module_& m);  // tests/cuda/bind_emulator.cpp
#endif

PYBIND11_MODULE(_core, m) {
    using namespace smolvla::bindings;
    m.doc() = "SmolVLA's C++ core; use smolvla_edge.load() rather than this module.";
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const smolvla::Error& error) {
            translate(error);
        }
    });
    m.def("philox_normal", &normal, py::arg("seed"), py::arg("rows"), py::arg("cols"));
    m.def("peak", &peak, py::arg("threads") = 0, py::arg("isa") = "",
          py::arg("milliseconds") = 300.0, py::arg("kind") = "float32");
    m.def("cpu_info", &cpu_info);
    m.def("kernel_table", &kernel_table, py::arg("isa") = "");
    m.def("letterbox", &letterbox, py::arg("frame"), py::arg("width"), py::arg("height"));
    bind_engine(m);
    bind_ops(m);
    bind_kernel_loop(m);
    bind_packed(m);
    bind_device_arrays(m);
    bind_cuda(m);
#ifdef SMOLVLA_WITH_CUDA
    bind_cuda_ops(m);
#endif
#ifdef SMOLVLA_CUDA_EMULATED
    bind_emulator(m);
#endif
}

// _core.KernelLoop: one kernel of one ISA over its own buffers, again and again. For the
// microbenchmarks of what is too short to be called from Python once at a time.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "bindings/engine.h"
#include "bindings/gil.h"
#include "cpu/isa.h"

namespace smolvla::bindings {
namespace {

constexpr int kHeadDim = 64;
constexpr int kAlignedWords = 16;  // a cache line

class KernelLoop {
public:
    // op: a row operation of the dispatch table, or copy, which is libc's, to compare with.
    // rows x columns: its matrix; of rope, columns are heads times 64. bf16: its result is stored
    // as bfloat16, or of quantize_rows, what it reads.
    KernelLoop(const std::string& op, const std::string& isa, int rows, int columns, bool bf16)
        : kernels_(cpu::choose_kernels(isa)), storage_(bf16 ? Storage::bf16 : Storage::f32) {
        for (int size : {rows, columns})
            if (size < 1 || size > 1 << 14)
                fail(ErrorKind::input, "rows, columns: expected 1 to %d, got %d", 1 << 14, size);
        const int padded = (columns + 31) / 32 * 32;
        x_ = buffer(rows * padded), y_ = buffer(rows * padded);
        weight_ = buffer(padded), bias_ = buffer(padded), factor_ = buffer(rows);
        lengths_.assign(static_cast<size_t>(rows), columns);
        std::fill(std::begin(cosine_), std::end(cosine_), 0.6f);
        std::fill(std::begin(sine_), std::end(sine_), 0.8f);
        call_ = choose(op, rows, columns, padded);
        if (!call_)
            fail(ErrorKind::input,
                 "op: expected layer_norm, rms_norm, softmax, softmax_bf16, scale_rows, "
                 "quantize_rows, copy or rope (its columns a multiple of %d), got %s of %d columns",
                 kHeadDim, op.c_str(), columns);
    }

    KernelLoop(const KernelLoop&) = delete;  // call_ points into this object
    KernelLoop& operator=(const KernelLoop&) = delete;

    void run(int times) {
        if (times < 1) fail(ErrorKind::input, "times: expected 1 or more, got %d", times);
        GilRelease release;
        for (int i = 0; i < times; ++i) call_();
    }

private:
    float* buffer(int count) {
        buffers_.emplace_back(static_cast<size_t>(count + kAlignedWords));
        std::vector<float>& made = buffers_.back();
        for (size_t i = 0; i < made.size(); ++i) made[i] = std::sin(0.37f * static_cast<float>(i));
        const auto at = reinterpret_cast<uintptr_t>(made.data()) / sizeof(float);
        return made.data() + (kAlignedWords - at % kAlignedWords) % kAlignedWords;
    }

    // Words of one float become words of two bfloat16 of its value.
    static void repeat_high_halves(float* words, int count) {
        for (int i = 0; i < count; ++i) {
            uint32_t bits;
            std::memcpy(&bits, words + i, sizeof bits);
            bits = (bits & 0xffff0000u) | bits >> 16;
            std::memcpy(words + i, &bits, sizeof bits);
        }
    }

    std::function<void()> choose(const std::string& op, int rows, int columns, int padded) {
        const cpu::Kernels& k = kernels_;
        if (op == "layer_norm" || op == "rms_norm") {
            const cpu::Norm norm = op == "rms_norm" ? k.rms_norm : k.layer_norm;
            return [=] {
                norm(x_, padded, rows, columns, weight_, bias_, 1e-6f, y_, padded, storage_);
            };
        }
        // In place: after the first call the scores are its own results, which are as ordinary.
        if (op == "softmax")
            return [=] { k.softmax(x_, padded, rows, lengths_.data(), padded, 0.125f, factor_); };
        if (op == "softmax_bf16")
            return [=] {
                k.softmax_bf16(x_, padded, rows, lengths_.data(), padded, 0.125f, factor_,
                               Storage::bf16);
            };
        if (op == "scale_rows")
            return [=] { k.scale_rows(x_, padded, rows, columns, factor_, y_, padded, storage_); };
        if (op == "quantize_rows") {
            if (storage_ == Storage::bf16) repeat_high_halves(x_, rows * padded);
            return [=] {
                k.quantize_rows(x_, padded, rows, columns, storage_, y_,
                                words_of(columns, Storage::i8));
            };
        }
        if (op == "copy")
            return [=] { std::memcpy(y_, x_, sizeof(float) * static_cast<size_t>(rows) * padded); };
        if (op == "rope" && columns % kHeadDim == 0)
            return [=] {
                for (int r = 0; r < rows; ++r)
                    k.rope(x_ + r * padded, columns / kHeadDim, kHeadDim, cosine_, sine_);
            };
        return nullptr;
    }

    cpu::Kernels kernels_;
    Storage storage_;
    std::vector<std::vector<float>> buffers_;
    float *x_ = nullptr, *y_ = nullptr, *weight_ = nullptr, *bias_ = nullptr, *factor_ = nullptr;
    float cosine_[kHeadDim / 2], sine_[kHeadDim / 2];
    std::vector<int> lengths_;
    std::function<void()> call_;
};

}  // namespace

void bind_kernel_loop(py::module_& m) {
    using py::arg;
    py::class_<KernelLoop>(m, "KernelLoop", "One row kernel of one ISA, for microbenchmarks.")
        .def(py::init<const std::string&, const std::string&, int, int, bool>(), arg("op"),
             arg("isa"), arg("rows"), arg("columns"), arg("bf16") = false)
        .def("run", &KernelLoop::run, arg("times"));
}

}  // namespace smolvla::bindings

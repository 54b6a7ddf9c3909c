// One call of an operator on arrays of other libraries: reads and checks its arguments, chooses the
// GPU, launches on the caller's stream. Nothing waits and nothing is allocated, but for a result
// that the caller gave no memory for, which its own library then makes.
#pragma once

#include <deque>
#include <optional>

#include "bindings/device_array.h"
#include "bindings/gil.h"
#include "cuda/current_gpu.h"
#include "cuda/kernels.h"
#include "cuda/status.h"

namespace smolvla::bindings {

// What an operator takes as one argument.
struct Wanted {
    std::vector<Element> elements;
    std::vector<int64_t> shape;  // -1: any size
    // Rows (everything but the first dimension) may have gaps between them; else there are none.
    bool pitched = true;
    // Addresses of rows are multiples of this. Less than 4 never, where kernels address rows in
    // words.
    int alignment = 4;
};

class Call {
public:
    // `caller` is a smolvla_edge.ops.arrays.Caller: the stream, and who makes results.
    explicit Call(const py::object& caller);

    // An array that is read.
    const DeviceArray& input(const py::object& x, const char* name, const Wanted& wanted);
    // The array that is written: `out`, or a new one of the first of `elements` (and then `out` is
    // that). May not share memory with any other argument.
    const DeviceArray& output(py::object& out, const char* name, const Wanted& wanted);
    // One that is read and written.
    const DeviceArray& updated(const py::object& x, const char* name, const Wanted& wanted);
    // That rows of an argument begin at multiples of `bytes`, where that depends on its dtype.
    void expect_aligned(const DeviceArray& x, int bytes) const;
    // From now on `x`, an input, may lie exactly where an output lies.
    void may_be_output(const DeviceArray& x);

    // Rows as kernels see them; an optional one that is not there has no data.
    static Mat rows(const DeviceArray& a);
    // An optional int32 in GPU memory, of rank 0 or [1]; null for None.
    const int* number(const py::object& x, const char* name);
    // An int32 vector.
    const int* numbers(const py::object& x, const char* name, int64_t size);
    // An optional float32 vector; null for None.
    const float* vector(const py::object& x, const char* name, int64_t size);

    // A handle's memory is on GPU `index`.
    void on_gpu(int index, const char* name);
    // After all arguments: launch(stream, processors) -> cudaError_t, with their GPU current, after
    // what their producers asked for and without the GIL. Raises what came back.
    template <class F>
    void run(const char* op, const F& launch) {
        const int processors = start();
        cudaError_t status;
        {
            GilRelease release;
            status = launch(stream_, processors);
        }
        cuda::check(status, op);
    }

private:
    struct Argument {
        const char* name;
        DeviceArray array;
        bool written, may_be_output;
    };
    const DeviceArray& keep(const py::object& x, const char* name, const Wanted& wanted,
                            bool written);
    int start();
    void check_overlaps() const;

    const py::object caller_;
    const cudaStream_t stream_;
    std::deque<Argument> arguments_;
    int gpu_ = -1;
    const char* gpu_of_ = "";
    std::optional<cuda::CurrentGpu> current_;
};

// Sizes within what kernels count in an int, with room for a product of a few of them.
constexpr int64_t kMaxRows = int64_t{1} << 20, kMaxColumns = int64_t{1} << 17;

}  // namespace smolvla::bindings

#include "bindings/cuda_call.h"

#include <map>
#include <mutex>

#include "runtime/error.h"

namespace smolvla::bindings {
namespace {

using cuda::check;

std::string wanted_text(const Wanted& w) {
    std::string text;
    for (size_t i = 0; i < w.elements.size(); ++i)
        text += (i ? " or " : "") + std::string(element_name(w.elements[i]));
    text += " [";
    for (size_t i = 0; i < w.shape.size(); ++i)
        text +=
            (i ? ", " : "") + (w.shape[i] < 0 ? std::string("any") : std::to_string(w.shape[i]));
    return text + "]";
}

[[noreturn]] void refuse(const DeviceArray& a, const char* name, const Wanted& w,
                         const std::string& what) {
    fail(ErrorKind::input, "%s: expected %s %s, got %s", name, wanted_text(w).c_str(), what.c_str(),
         a.describe().c_str());
}

// Elements of a row: of everything but the first dimension.
int64_t row_elements(const DeviceArray& a) {
    int64_t count = 1;
    for (int i = 1; i < a.rank(); ++i) count *= a.shape[size_t(i)];
    return count;
}
int64_t pitch_bytes(const DeviceArray& a) {
    const int64_t bytes = element_bytes(a.element);
    // Of one row there is no distance to the next: whatever kernels like best.
    if (a.rank() == 0 || a.shape[0] == 1) return (row_elements(a) * bytes + 15) / 16 * 16;
    return a.strides[0] * bytes;
}

void check_aligned(const DeviceArray& a, const char* name, bool pitched, int bytes) {
    const auto address = reinterpret_cast<uintptr_t>(a.data);
    if (address % uintptr_t(bytes) == 0 && (!pitched || pitch_bytes(a) % bytes == 0)) return;
    fail(
        ErrorKind::input,
        "%s: expected rows that begin at multiples of %d bytes, got %s at address %p; copy it into "
        "rows of such a length",
        name, bytes, a.describe().c_str(), a.data);
}

void check_fits(const DeviceArray& a, const char* name, const Wanted& w, bool written) {
    bool element = false, shape = a.rank() == int(w.shape.size());
    for (Element e : w.elements) element = element || e == a.element;
    for (size_t i = 0; shape && i < w.shape.size(); ++i)
        shape = w.shape[i] < 0 || w.shape[i] == a.shape[i];
    if (!element || !shape) refuse(a, name, w, "in GPU memory");
    for (int i = 0; i < a.rank(); ++i)
        if (a.shape[size_t(i)] < 1 || a.shape[size_t(i)] > (i == 0 ? kMaxRows : kMaxColumns))
            fail(ErrorKind::input, "%s: expected 1 to %lld in dimension %d, got %s", name,
                 static_cast<long long>(i == 0 ? kMaxRows : kMaxColumns), i, a.describe().c_str());
    if (row_elements(a) > INT32_MAX / 8)
        fail(ErrorKind::input, "%s: expected rows of at most %d elements, got %s", name,
             INT32_MAX / 8, a.describe().c_str());
    int64_t step = 1;
    for (int i = a.rank() - 1; i >= (w.pitched ? 1 : 0); --i) {
        if (a.shape[size_t(i)] > 1 && a.strides[size_t(i)] != step)
            refuse(a, name, w, w.pitched ? "with rows that have no gaps inside" : "without gaps");
        step *= a.shape[size_t(i)];
    }
    const int64_t bytes = element_bytes(a.element), pitch = pitch_bytes(a);
    if (written && w.pitched && a.rank() > 0 && pitch < row_elements(a) * bytes)
        refuse(a, name, w, "with rows that do not share memory");
    check_aligned(a, name, w.pitched, w.alignment);
    if (written && a.read_only)
        fail(ErrorKind::input, "%s: expected an array that may be written, got a read-only one",
             name);
}

struct Span {
    uintptr_t begin, end;
    int64_t pitch, row;  // bytes; pitch 0: one run
};
Span span_of(const DeviceArray& a) {
    const int64_t row = row_elements(a) * element_bytes(a.element);
    const int64_t rows = a.rank() ? a.shape[0] : 1, pitch = rows > 1 ? pitch_bytes(a) : 0;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(a.data);
    if (a.rank() == 0) return {begin, begin + uintptr_t(element_bytes(a.element)), 0, row};
    return {begin, begin + uintptr_t((rows - 1) * pitch + row), pitch, row};
}
bool overlap(const DeviceArray& a, const DeviceArray& b) {
    const Span x = span_of(a), y = span_of(b);
    if (x.begin >= y.end || y.begin >= x.end) return false;
    if (x.pitch == 0 || x.pitch != y.pitch) return true;
    // Rows at the same distance, as columns of one larger matrix: side by side?
    const int64_t shift = (int64_t(y.begin - x.begin) % x.pitch + x.pitch) % x.pitch;
    return shift < x.row || shift + y.row > x.pitch;
}
bool same(const DeviceArray& a, const DeviceArray& b) {
    return a.data == b.data && a.element == b.element && a.shape == b.shape &&
           a.strides == b.strides;
}

// Processors of the GPU that is current; what comes before its first kernel is done.
int prepared_processors(int gpu) {
    static std::mutex mutex;
    static std::map<int, int> known;
    const std::lock_guard<std::mutex> lock(mutex);
    int& processors = known[gpu];
    if (processors > 0) return processors;
    const auto attribute = [&](cudaDeviceAttr what) {
        int value = 0;
        check(cudaDeviceGetAttribute(&value, what, gpu), "asking the GPU what it is");
        return value;
    };
    const int major = attribute(cudaDevAttrComputeCapabilityMajor);
    if (major < 8)
        fail(ErrorKind::backend,
             "cuda:%d: expected a GPU of compute capability 8.0 or later, got %d.%d", gpu, major,
             attribute(cudaDevAttrComputeCapabilityMinor));
    check(cuda::prepare_gemm_bf16(), "preparing kernels");
    check(cuda::prepare_gemm_i8(), "preparing kernels");
    check(cuda::prepare_gemm_w4(), "preparing kernels");
    return processors = attribute(cudaDevAttrMultiProcessorCount);
}

// Work on `stream` from now on comes after what the producer has asked for.
void wait_for(uintptr_t producer, cudaStream_t stream) {
    const auto other = reinterpret_cast<cudaStream_t>(producer == kLegacyStream ? 0 : producer);
    if (other == stream) return;
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
    cudaError_t status = cudaEventRecord(event, other);
    if (status == cudaSuccess) status = cudaStreamWaitEvent(stream, event, 0);
    cudaEventDestroy(event);  // CUDA keeps it until the stream has passed it
    check(status, "waiting for the stream of an array's producer");
}

}  // namespace

Call::Call(const py::object& caller)
    : caller_(caller),
      stream_(reinterpret_cast<cudaStream_t>(caller.attr("stream").cast<uintptr_t>())) {}

const DeviceArray& Call::keep(const py::object& x, const char* name, const Wanted& wanted,
                              bool written) {
    // Arrays of the library whose own stream this is need not wait for it.
    const py::object library = caller_.attr("same_stream");
    const uintptr_t stream = reinterpret_cast<uintptr_t>(stream_);
    const bool same = !library.is_none() && py::isinstance(x, library);
    const intptr_t exchange = same ? kSameStream : intptr_t(stream ? stream : kLegacyStream);
    DeviceArray a = read_device_array(x, name, exchange);
    check_fits(a, name, wanted, written);
    if (a.device < 0 && a.place != Place::host) {
        int owner = cuda::kUnknown;
        check(cuda::owner_of(a.data, &owner), name);
        if (owner == cuda::kUnknown)
            fail(ErrorKind::input,
                 "%s: expected memory of a CUDA GPU, got %s at %p in the CPU's memory", name,
                 a.describe().c_str(), a.data);
        if (owner == cuda::kPinned)
            a.place = Place::host;
        else
            a.device = owner;
    }
    if (a.place != Place::host) on_gpu(a.device, name);
    arguments_.push_back({name, std::move(a), written, false});
    return arguments_.back().array;
}

void Call::on_gpu(int index, const char* name) {
    if (gpu_ < 0) gpu_ = index, gpu_of_ = name;
    if (index != gpu_)
        fail(ErrorKind::input, "%s: expected memory of cuda:%d, where %s is, got cuda:%d", name,
             gpu_, gpu_of_, index);
}

const DeviceArray& Call::input(const py::object& x, const char* name, const Wanted& wanted) {
    return keep(x, name, wanted, false);
}
const DeviceArray& Call::updated(const py::object& x, const char* name, const Wanted& wanted) {
    return keep(x, name, wanted, true);
}
const DeviceArray& Call::output(py::object& out, const char* name, const Wanted& wanted) {
    if (out.is_none()) {
        py::tuple shape(wanted.shape.size());
        for (size_t i = 0; i < wanted.shape.size(); ++i) shape[i] = wanted.shape[i];
        out = caller_.attr("empty")(shape, element_name(wanted.elements.front()));
    }
    return keep(out, name, wanted, true);
}

void Call::expect_aligned(const DeviceArray& x, int bytes) const {
    for (const Argument& a : arguments_)
        if (&a.array == &x) check_aligned(x, a.name, true, bytes);
}

void Call::may_be_output(const DeviceArray& x) {
    for (Argument& a : arguments_)
        if (&a.array == &x) a.may_be_output = true;
}

Mat Call::rows(const DeviceArray& a) {
    const int columns = int(row_elements(a));
    const Storage storage = a.element == Element::f32    ? Storage::f32
                            : a.element == Element::bf16 ? Storage::bf16_rows
                                                         : Storage::i8;
    return {static_cast<float*>(a.data), int(a.rank() ? a.shape[0] : 1), columns,
            ptrdiff_t(pitch_bytes(a) / 4), storage};
}

const int* Call::number(const py::object& x, const char* name) {
    if (x.is_none()) return nullptr;
    // Both are common for a number: a tensor of no dimension, and the element of a vector.
    const bool bare = py::hasattr(x, "shape") && py::len(x.attr("shape")) == 0;
    const Wanted wanted{{Element::i32}, bare ? std::vector<int64_t>{} : std::vector<int64_t>{1}};
    return static_cast<const int*>(input(x, name, wanted).data);
}

const int* Call::numbers(const py::object& x, const char* name, int64_t size) {
    return static_cast<const int*>(input(x, name, {{Element::i32}, {size}, false}).data);
}

const float* Call::vector(const py::object& x, const char* name, int64_t size) {
    if (x.is_none()) return nullptr;
    return static_cast<const float*>(input(x, name, {{Element::f32}, {size}, false}).data);
}

void Call::check_overlaps() const {
    for (const Argument& out : arguments_) {
        if (!out.written) continue;
        for (const Argument& other : arguments_) {
            if (&other == &out || !overlap(out.array, other.array)) continue;
            if (other.may_be_output && same(out.array, other.array)) continue;
            fail(ErrorKind::input, "%s: expected memory of its own, got memory that %s shares",
                 out.name, other.name);
        }
    }
}

int Call::start() {
    check_overlaps();
    if (gpu_ < 0) check(cudaGetDevice(&gpu_), "asking for the GPU");  // all in pinned memory
    current_.emplace(gpu_);
    check(current_->status(), "choosing the GPU");
    const int processors = prepared_processors(gpu_);
    for (const Argument& a : arguments_)
        if (a.array.producer_stream) wait_for(a.array.producer_stream, stream_);
    return processors;
}

}  // namespace smolvla::bindings

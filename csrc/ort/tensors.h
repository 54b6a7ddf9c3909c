// What a kernel is given by ONNX Runtime and gives back, with errors as exceptions.
#pragma once

#include <array>
#include <exception>
#include <initializer_list>
#include <string>

#include "ort/abi.h"
#include "runtime/error.h"

namespace smolvla::ort {

// Throws what a failed call of the runtime says.
void check(const Api& api, Status* status);

struct Tensor {
    static constexpr int kMaxRank = 8;

    ElementType type{};
    int rank = 0;
    std::array<int64_t, kMaxRank> dims{};
    void* data = nullptr;

    const float* floats() const { return static_cast<const float*>(data); }
    int64_t last() const { return dims[size_t(rank) - 1]; }
    std::string shape() const;  // "[2, 3]"
    // Refuses another element type, or another shape where a dimension is not -1, and all that an
    // int cannot count. `name` and `expected` are for the message.
    void expect(const char* name, ElementType type, std::initializer_list<int64_t> shape) const;
    int dim(int i) const { return static_cast<int>(dims[size_t(i)]); }
};

Tensor tensor_of(const Api& api, const Value* value);
Tensor input(const Api& api, const KernelContext* context, size_t index);
// A tensor of float32 of the given shape's dimensions.
float* output(const Api& api, KernelContext* context, size_t index, const Tensor& shape);

int attribute(const Api& api, const KernelInfo* info, const char* name);
// Whether the input is a constant that is known while the kernel is made.
bool constant_input(const Api& api, const KernelInfo* info, size_t index, Tensor& tensor);

// Runs `f` where an exception must not pass: across the C boundary.
template <class F>
Status* guarded(const Api& api, const F& f) noexcept {
    try {
        f();
        return nullptr;
    } catch (const Error& error) {
        return api.create_status(error.kind == ErrorKind::backend ? kFailed : kInvalidArgument,
                                 error.what());
    } catch (const std::exception& error) {
        return api.create_status(kFailed, error.what());
    } catch (...) {
        return api.create_status(kFailed, "an exception of an unknown type");
    }
}

}  // namespace smolvla::ort

#include "ort/tensors.h"

#include <limits>

namespace smolvla::ort {
namespace {

std::string type_name(ElementType type) {
    switch (type) {
        case kFloat: return "float32";
        case kInt8: return "int8";
        case kBool: return "bool";
        case kInt4: return "int4";
    }
    return "elements of type " + std::to_string(static_cast<int>(type));
}

template <class Dims>
std::string shape_text(const Dims& dims, int rank) {
    std::string text = "[";
    for (int i = 0; i < rank; ++i) {
        const int64_t dim = *(dims.begin() + i);
        text += (i ? ", " : "") + (dim < 0 ? "any" : std::to_string(dim));
    }
    return text + "]";
}

struct Info {
    Info(const Api& api, const Value* value) : api(api) {
        check(api, api.tensor_info(value, &info));
    }
    ~Info() { api.release_tensor_info(info); }
    Info(const Info&) = delete;
    Info& operator=(const Info&) = delete;
    const Api& api;
    TensorInfo* info = nullptr;
};

}  // namespace

void check(const Api& api, Status* status) {
    if (!status) return;
    const std::string message = api.error_message(status);
    api.release_status(status);
    throw Error(ErrorKind::backend, message);
}

std::string Tensor::shape() const { return shape_text(dims, rank); }

void Tensor::expect(const char* name, ElementType wanted,
                    std::initializer_list<int64_t> shape) const {
    bool fits = type == wanted && rank == static_cast<int>(shape.size());
    for (int i = 0; fits && i < rank; ++i) {
        const int64_t want = *(shape.begin() + i), dim = dims[size_t(i)];
        fits = (want < 0 || dim == want) && dim <= std::numeric_limits<int>::max();
    }
    if (!fits)
        fail(ErrorKind::input, "%s: expected %s %s, got %s %s", name, type_name(wanted).c_str(),
             shape_text(shape, static_cast<int>(shape.size())).c_str(), type_name(type).c_str(),
             this->shape().c_str());
}

Tensor tensor_of(const Api& api, const Value* value) {
    Tensor tensor;
    const Info of(api, value);
    check(api, api.element_type(of.info, &tensor.type));
    size_t rank = 0;
    check(api, api.dimensions_count(of.info, &rank));
    if (rank > size_t(Tensor::kMaxRank))
        fail(ErrorKind::input, "expected at most %d dimensions, got %zu", Tensor::kMaxRank, rank);
    tensor.rank = static_cast<int>(rank);
    check(api, api.dimensions(of.info, tensor.dims.data(), rank));
    check(api, api.tensor_data(const_cast<Value*>(value), &tensor.data));
    return tensor;
}

Tensor input(const Api& api, const KernelContext* context, size_t index) {
    const Value* value = nullptr;
    check(api, api.input(context, index, &value));
    return tensor_of(api, value);
}

float* output(const Api& api, KernelContext* context, size_t index, const Tensor& shape) {
    Value* value = nullptr;
    check(api,
          api.output(context, index, shape.dims.data(), static_cast<size_t>(shape.rank), &value));
    void* data = nullptr;
    check(api, api.tensor_data(value, &data));
    return static_cast<float*>(data);
}

int attribute(const Api& api, const KernelInfo* info, const char* name) {
    int64_t value = 0;
    check(api, api.attribute_int64(info, name, &value));
    if (value < 1 || value > std::numeric_limits<int>::max())
        fail(ErrorKind::input, "%s: expected 1 or more, got %lld", name,
             static_cast<long long>(value));
    return static_cast<int>(value);
}

bool constant_input(const Api& api, const KernelInfo* info, size_t index, Tensor& tensor) {
    int constant = 0;
    const Value* value = nullptr;
    check(api, api.constant_input(info, index, &constant, &value));
    if (!constant) return false;
    tensor = tensor_of(api, value);
    return true;
}

}  // namespace smolvla::ort

// The part of ONNX Runtime's C ABI that custom operators need, declared here: the runtime's
// packages bring no headers.
//
// The runtime's API is a table of function pointers that only grows. A slot keeps its number and
// its meaning for ever, so a library that was built once loads in every later version. Every slot
// below is called by tests/unit/test_ort_*.py, in their refusals too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace smolvla::ort {

// The runtime's own objects, never looked into.
struct Status;
struct Value;
struct TensorInfo;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct OpDomain;

// The table that is asked for: of ONNX Runtime 1.20, the oldest that was tried. The last slot below
// came with version 17.
constexpr uint32_t kApiVersion = 20;
constexpr uint32_t kOpVersion = 17;  // of CustomOp

enum ErrorCode : int { kFailed = 1, kInvalidArgument = 2 };

// Element types, as many as are used here.
enum ElementType : int { kFloat = 1, kInt8 = 3, kBool = 9, kInt4 = 22 };

// Functions that return a Status return null when all is well.
struct Api {
    Status* (*create_status)(ErrorCode code, const char* message);  // slot 0
    const void* slot1;
    const char* (*error_message)(const Status* status);
    const void* slots3[23];
    Status* (*create_custom_op_domain)(const char* name, OpDomain** domain);  // slot 26
    Status* (*custom_op_domain_add)(OpDomain* domain, const struct CustomOp* op);
    Status* (*add_custom_op_domain)(SessionOptions* options, OpDomain* domain);
    const void* slots29[22];
    Status* (*tensor_data)(Value* value, void** data);  // slot 51
    const void* slots52[8];
    Status* (*element_type)(const TensorInfo* info, ElementType* type);  // slot 60
    Status* (*dimensions_count)(const TensorInfo* info, size_t* count);
    Status* (*dimensions)(const TensorInfo* info, int64_t* values, size_t count);
    const void* slots63[2];
    Status* (*tensor_info)(const Value* value, TensorInfo** info);  // slot 65
    const void* slots66[20];
    Status* (*attribute_int64)(const KernelInfo* info, const char* name, int64_t* value);  // 86
    const void* slots87[3];
    Status* (*input)(const KernelContext* context, size_t index, const Value** value);  // slot 90
    Status* (*output)(KernelContext* context, size_t index, const int64_t* shape, size_t rank,
                      Value** value);
    const void* slot92;
    void (*release_status)(Status* status);  // slot 93
    const void* slots94[5];
    void (*release_tensor_info)(TensorInfo* info);  // slot 99
    const void* slots100[149];
    Status* (*constant_input)(const KernelInfo* info, size_t index, int* constant,
                              const Value** value);  // slot 249
    const void* slots250[24];
    // Calls item(data, i) for every i < total, on the threads of the session; returns when all are
    // done. batches 0: handed out one by one.
    Status* (*parallel_for)(const KernelContext* context, void (*item)(void* data, size_t i),
                            size_t total, size_t batches, void* data);  // slot 274
};

constexpr size_t slot_of(size_t offset) { return offset / sizeof(void*); }
static_assert(slot_of(offsetof(Api, create_custom_op_domain)) == 26);
static_assert(slot_of(offsetof(Api, tensor_data)) == 51);
static_assert(slot_of(offsetof(Api, element_type)) == 60);
static_assert(slot_of(offsetof(Api, tensor_info)) == 65);
static_assert(slot_of(offsetof(Api, attribute_int64)) == 86);
static_assert(slot_of(offsetof(Api, input)) == 90);
static_assert(slot_of(offsetof(Api, release_status)) == 93);
static_assert(slot_of(offsetof(Api, release_tensor_info)) == 99);
static_assert(slot_of(offsetof(Api, constant_input)) == 249);
static_assert(slot_of(offsetof(Api, parallel_for)) == 274);

struct ApiBase {
    const Api* (*api)(uint32_t version);  // null for a version that the runtime does not have
    const char* (*version)();
};

// An operator, as the runtime reads it. What a null stands for was left out.
struct CustomOp {
    uint32_t version;
    void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);  // null: see below
    const char* (*name)(const CustomOp*);
    const char* (*provider)(const CustomOp*);  // gives null for the CPU
    ElementType (*input_type)(const CustomOp*, size_t index);
    size_t (*input_count)(const CustomOp*);
    ElementType (*output_type)(const CustomOp*, size_t index);
    size_t (*output_count)(const CustomOp*);
    void (*compute)(void*, KernelContext*);  // null: see below
    void (*destroy_kernel)(void* kernel);
    int (*input_characteristic)(const CustomOp*, size_t index);  // 0: it is required
    int (*output_characteristic)(const CustomOp*, size_t index);
    int (*input_memory)(const CustomOp*, size_t index);  // 0: the memory of the provider
    int (*variadic[4])(const CustomOp*);
    // Of versions from 16 on, in place of those that cannot fail.
    Status* (*create_kernel_or_fail)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
    Status* (*compute_or_fail)(void* kernel, KernelContext* context);
    void* infer_shapes;
    int (*start_version)(const CustomOp*);
    int (*end_version)(const CustomOp*);
    void* aliases[4];
};

}  // namespace smolvla::ort

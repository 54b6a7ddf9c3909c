// DLPack's structs, of version 1 and of the time before it had versions: the ABI of
// https://dmlc.github.io/dlpack/latest/c_api.html, as far as arrays that are read from need it.
#pragma once

#include <cstdint>

namespace smolvla::bindings::dlpack {

enum DeviceType : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

struct Device {
    int32_t type, id;
};
struct DataType {
    uint8_t code, bits;
    uint16_t lanes;
};
struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;
    int64_t* strides;  // in elements; null: rows without gaps
    uint64_t byte_offset;
};
struct Managed {
    Tensor tensor;
    void* context;
    void (*deleter)(Managed*);  // may be null
};

struct Version {
    uint32_t major, minor;
};
constexpr uint32_t kMajor = 1;  // within a major version the struct stays as it is
constexpr uint64_t kReadOnly = 1, kIsCopied = 2;
struct ManagedVersioned {
    Version version;
    void* context;
    void (*deleter)(ManagedVersioned*);  // may be null
    uint64_t flags;
    Tensor tensor;
};

// A capsule's name says which struct it holds; who takes it over renames it.
constexpr const char* kCapsule = "dltensor";
constexpr const char* kUsedCapsule = "used_dltensor";
constexpr const char* kVersionedCapsule = "dltensor_versioned";
constexpr const char* kUsedVersionedCapsule = "used_dltensor_versioned";

}  // namespace smolvla::bindings::dlpack

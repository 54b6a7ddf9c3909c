#include "runtime/tensor_source.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "runtime/error.h"

namespace smolvla {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

void check_entry(const TensorEntry& e, uint64_t file_bytes) {
    uint64_t count = 1;
    for (int64_t d : e.shape) {
        if (d < 0 || __builtin_mul_overflow(count, static_cast<uint64_t>(d), &count))
            fail(ErrorKind::checkpoint, "%s: shape %s overflows", e.name.c_str(),
                 shape_text(e.shape).c_str());
    }
    uint64_t bytes;
    if (__builtin_mul_overflow(count, static_cast<uint64_t>(dtype_bytes(e.dtype)), &bytes) ||
        bytes != e.bytes)
        fail(ErrorKind::checkpoint, "%s: shape %s does not take %llu bytes", e.name.c_str(),
             shape_text(e.shape).c_str(), static_cast<unsigned long long>(e.bytes));
    if (e.offset > file_bytes || e.bytes > file_bytes - e.offset)
        fail(ErrorKind::checkpoint, "%s: bytes %llu..+%llu lie outside %s of %llu bytes",
             e.name.c_str(), static_cast<unsigned long long>(e.offset),
             static_cast<unsigned long long>(e.bytes), e.path.c_str(),
             static_cast<unsigned long long>(file_bytes));
}

}  // namespace

int dtype_bytes(DType dtype) {
    switch (dtype) {
        case DType::f32: return 4;
        case DType::i8:
        case DType::u8: return 1;
        default: return 2;
    }
}

DType parse_dtype(const std::string& name) {
    if (name == "F32") return DType::f32;
    if (name == "BF16") return DType::bf16;
    if (name == "F16") return DType::f16;
    if (name == "I8") return DType::i8;
    if (name == "U8") return DType::u8;
    fail(ErrorKind::checkpoint, "dtype %s is not one of F32, BF16, F16, I8, U8", name.c_str());
}

float bf16_to_f32(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

float f16_to_f32(uint16_t bits) {
    const int exponent = (bits >> 10) & 31;
    const int mantissa = bits & 1023;
    float value;
    if (exponent == 31)
        value = mantissa ? NAN : INFINITY;
    else if (exponent == 0)
        value = std::ldexp(static_cast<float>(mantissa), -24);
    else
        value = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
    return (bits & 0x8000) ? -value : value;
}

// O_NONBLOCK: opening a pipe that nobody writes to would never return.
TensorSource::File::File(const std::string& path)
    : fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        const std::string reason = std::strerror(errno);
        if (fd >= 0) close(fd);
        fail(ErrorKind::checkpoint, "cannot open %s: %s", path.c_str(), reason.c_str());
    }
    if (!S_ISREG(st.st_mode)) {
        close(fd);
        fail(ErrorKind::checkpoint, "%s: expected a regular file, got something else",
             path.c_str());
    }
    bytes = static_cast<uint64_t>(st.st_size);
}

TensorSource::File::~File() { close(fd); }

TensorSource::TensorSource(const std::vector<TensorEntry>& entries) {
    for (const TensorEntry& e : entries) {
        const File& file = files_.try_emplace(e.path, e.path).first->second;
        check_entry(e, file.bytes);
        if (!entries_.emplace(e.name, e).second)
            fail(ErrorKind::checkpoint, "tensor %s is given twice", e.name.c_str());
        total_bytes_ += e.bytes;
    }
}

TensorSource::~TensorSource() {
    for (const Mapping& m : mappings_) munmap(m.base, m.bytes);
}

const TensorEntry& TensorSource::find(const std::string& name) const {
    const auto it = entries_.find(name);
    if (it == entries_.end()) fail(ErrorKind::checkpoint, "tensor %s is missing", name.c_str());
    return it->second;
}

const TensorEntry& TensorSource::expect_matrix(const std::string& name, int rows, int in) const {
    const TensorEntry& e = find(name);
    int64_t count = 1;
    for (int64_t d : e.shape) count *= d;
    if (e.shape.empty() || e.shape[0] != rows || count != int64_t(rows) * in)
        fail(ErrorKind::checkpoint, "tensor %s: expected [%d, %d] elements, got %lld in %lld rows",
             name.c_str(), rows, in, static_cast<long long>(count),
             static_cast<long long>(e.shape.empty() ? 0 : e.shape[0]));
    return e;
}

const TensorEntry& TensorSource::expect(const std::string& name,
                                        const std::vector<int64_t>& shape) const {
    const TensorEntry& e = find(name);
    if (e.shape != shape)
        fail(ErrorKind::checkpoint, "tensor %s: expected shape %s, got %s", name.c_str(),
             shape_text(shape).c_str(), shape_text(e.shape).c_str());
    return e;
}

void TensorSource::read(const TensorEntry& entry, int64_t first, int64_t count, void* out) const {
    const uint64_t item = static_cast<uint64_t>(dtype_bytes(entry.dtype));
    if (first < 0 || count < 0 || static_cast<uint64_t>(first + count) * item > entry.bytes)
        fail(ErrorKind::checkpoint, "read past the end of %s", entry.name.c_str());
    const int fd = files_.at(entry.path).fd;
    char* to = static_cast<char*>(out);
    uint64_t at = entry.offset + static_cast<uint64_t>(first) * item;
    uint64_t left = static_cast<uint64_t>(count) * item;
    while (left > 0) {
        const ssize_t got = pread(fd, to, left, static_cast<off_t>(at));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            fail(ErrorKind::checkpoint, "reading %s from %s failed: %s", entry.name.c_str(),
                 entry.path.c_str(), got < 0 ? std::strerror(errno) : "the file became shorter");
        to += got;
        at += static_cast<uint64_t>(got);
        left -= static_cast<uint64_t>(got);
    }
}

void TensorSource::read_f32(const TensorEntry& entry, int64_t first, int64_t count,
                            float* out) const {
    if (entry.dtype == DType::f32) return read(entry, first, count, out);
    if (dtype_bytes(entry.dtype) != 2)
        fail(ErrorKind::checkpoint, "tensor %s: expected floats, got integers", entry.name.c_str());
    constexpr int64_t kBlock = 8 << 10;
    uint16_t staging[kBlock];
    const auto widen = entry.dtype == DType::bf16 ? bf16_to_f32 : f16_to_f32;
    for (int64_t done = 0; done < count; done += kBlock) {
        const int64_t n = std::min(kBlock, count - done);
        read(entry, first + done, n, staging);
        for (int64_t i = 0; i < n; ++i) out[done + i] = widen(staging[i]);
    }
}

const void* TensorSource::map(const TensorEntry& entry) {
    const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const uint64_t begin = entry.offset / page * page;
    const size_t bytes = static_cast<size_t>(entry.offset - begin + entry.bytes);
    void* base = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, files_.at(entry.path).fd,
                      static_cast<off_t>(begin));
    if (base == MAP_FAILED)
        fail(ErrorKind::checkpoint, "cannot map %s: %s", entry.name.c_str(), std::strerror(errno));
    madvise(base, bytes, MADV_RANDOM);  // a handful of rows: no read-ahead
    mappings_.push_back({base, bytes});
    return static_cast<const char*>(base) + (entry.offset - begin);
}

}  // namespace smolvla

// Where a weight lies on disk. Python has read and checked the safetensors header; this class
// checks again what memory safety rests on (range inside the file, shape x dtype = bytes) and reads
// with pread through a small staging buffer, so that no file page stays in the process.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace smolvla {

enum class DType { f32, bf16, f16, i8, u8 };  // u8: two codes of four bits
int dtype_bytes(DType dtype);
DType parse_dtype(const std::string& name);

struct TensorEntry {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
    std::string path;
    uint64_t offset;  // absolute, in bytes
    uint64_t bytes;
};

class TensorSource {
public:
    explicit TensorSource(const std::vector<TensorEntry>& entries);
    ~TensorSource();
    TensorSource(const TensorSource&) = delete;
    TensorSource& operator=(const TensorSource&) = delete;

    bool has(const std::string& name) const { return entries_.count(name) != 0; }
    const TensorEntry& find(const std::string& name) const;
    // The entry, after checking that its shape is exactly `shape`.
    const TensorEntry& expect(const std::string& name, const std::vector<int64_t>& shape) const;
    // The same of a matrix [rows, in]; a convolution is one, whose inputs are (channel, y, x).
    const TensorEntry& expect_matrix(const std::string& name, int rows, int in) const;
    uint64_t total_bytes() const { return total_bytes_; }

    // Reads elements [first, first + count) in storage form. From any thread, like the next.
    void read(const TensorEntry& entry, int64_t first, int64_t count, void* out) const;
    // The same of floats, widened to float32 (exact).
    void read_f32(const TensorEntry& entry, int64_t first, int64_t count, float* out) const;
    // A read-only mapping of one tensor, for tables of which only a few rows are touched.
    const void* map(const TensorEntry& entry);

private:
    // Closes by itself: a constructor that refuses an entry runs no destructor of TensorSource.
    struct File {
        explicit File(const std::string& path);
        ~File();
        File(const File&) = delete;
        File& operator=(const File&) = delete;
        int fd;
        uint64_t bytes;
    };
    struct Mapping {
        void* base;
        size_t bytes;
    };
    std::map<std::string, TensorEntry> entries_;
    std::map<std::string, File> files_;
    std::vector<Mapping> mappings_;
    uint64_t total_bytes_ = 0;
};

float bf16_to_f32(uint16_t bits);
float f16_to_f32(uint16_t bits);

}  // namespace smolvla

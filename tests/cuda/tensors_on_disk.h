// Tensors in a file of their own, for tests that load weights.
#pragma once

#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "runtime/tensor_source.h"

namespace smolvla {

class TensorsOnDisk {
public:
    TensorsOnDisk() : path_("/tmp/smolvla_tensors_" + std::to_string(getpid())) {
        file_.open(path_, std::ios::binary);
    }
    ~TensorsOnDisk() { unlink(path_.c_str()); }
    TensorsOnDisk(const TensorsOnDisk&) = delete;
    TensorsOnDisk& operator=(const TensorsOnDisk&) = delete;

    template <class T>
    void add(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
             const std::vector<T>& values) {
        const uint64_t bytes = values.size() * sizeof(T);
        file_.write(reinterpret_cast<const char*>(values.data()), std::streamsize(bytes));
        entries_.push_back({name, dtype, shape, path_, at_, bytes});
        at_ += bytes;
    }
    const std::vector<TensorEntry>& entries() {
        file_.flush();
        return entries_;
    }

private:
    const std::string path_;
    std::ofstream file_;
    uint64_t at_ = 0;
    std::vector<TensorEntry> entries_;
};

}  // namespace smolvla

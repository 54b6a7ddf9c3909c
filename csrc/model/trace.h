// Intermediates by the names of the golden files, for tests and `verify`. Null in production.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "ops/ops.h"

namespace smolvla {

struct TraceEntry {
    std::vector<int> shape;
    std::vector<float> values;
};

class Trace {
public:
    // Whose memory the matrices are in.
    void attach(Backend& ops) { ops_ = &ops; }

    void put(const std::string& name, Mat x) {
        entries.emplace_back(name, TraceEntry{{1, x.rows, x.cols}, values_of(x)});
    }
    void put(const std::string& name, std::vector<int> shape, Mat x) {
        entries.emplace_back(name, TraceEntry{std::move(shape), values_of(x)});
    }
    // [rows, heads * dim] -> [1, heads, rows, dim]
    void put_heads(const std::string& name, Mat x, int heads) {
        const int dim = x.cols / heads;
        const std::vector<float> rows = values_of(x);
        TraceEntry e{{1, heads, x.rows, dim}, {}};
        for (int h = 0; h < heads; ++h)
            for (int r = 0; r < x.rows; ++r) {
                const float* from = &rows[size_t(r) * x.cols + size_t(h) * dim];
                e.values.insert(e.values.end(), from, from + dim);
            }
        entries.emplace_back(name, std::move(e));
    }
    void put(const std::string& name, std::vector<int> shape, const float* values) {
        size_t count = 1;
        for (int d : shape) count *= static_cast<size_t>(d);
        entries.emplace_back(
            name, TraceEntry{std::move(shape), std::vector<float>(values, values + count)});
    }

    std::vector<std::pair<std::string, TraceEntry>> entries;

private:
    std::vector<float> values_of(Mat x) {
        std::vector<float> values(size_t(x.rows) * x.cols);
        ops_->read(x, values.data());
        return values;
    }

    Backend* ops_ = nullptr;
};

}  // namespace smolvla

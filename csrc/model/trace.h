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
    void put(const std::string& name, Mat x) {
        TraceEntry e{{1, x.rows, x.cols}, {}};
        for (int r = 0; r < x.rows; ++r)
            for (int c = 0; c < x.cols; ++c) e.values.push_back(x.value(r, c));
        entries.emplace_back(name, std::move(e));
    }
    // [rows, heads * dim] -> [1, heads, rows, dim]
    void put_heads(const std::string& name, Mat x, int heads) {
        const int dim = x.cols / heads;
        TraceEntry e{{1, heads, x.rows, dim}, {}};
        for (int h = 0; h < heads; ++h)
            for (int r = 0; r < x.rows; ++r)
                e.values.insert(e.values.end(), x.row(r) + h * dim, x.row(r) + (h + 1) * dim);
        entries.emplace_back(name, std::move(e));
    }
    void put(const std::string& name, std::vector<int> shape, const float* values) {
        size_t count = 1;
        for (int d : shape) count *= static_cast<size_t>(d);
        entries.emplace_back(
            name, TraceEntry{std::move(shape), std::vector<float>(values, values + count)});
    }

    std::vector<std::pair<std::string, TraceEntry>> entries;
};

}  // namespace smolvla

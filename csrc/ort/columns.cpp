#include "ort/columns.h"

#include <algorithm>
#include <utility>

#include "runtime/error.h"

namespace smolvla::ort {
namespace {

// Whether one of two lists begins with the whole of the other.
bool nested(const std::vector<int>& a, const std::vector<int>& b) {
    return std::equal(a.begin(), a.begin() + static_cast<ptrdiff_t>(std::min(a.size(), b.size())),
                      b.begin());
}

}  // namespace

std::vector<Columns> readable(const uint8_t* mask, int rows, int columns) {
    std::vector<Columns> parts;
    std::vector<int> read;
    for (int r = 0; r < rows; ++r) {
        const uint8_t* row = mask + size_t(r) * columns;
        read.resize(size_t(columns));
        int count = 0;
        for (int c = 0; c < columns; ++c) {
            read[size_t(count)] = c;
            count += row[c] != 0;
        }
        read.resize(size_t(count));
        if (count == 0)
            fail(ErrorKind::input,
                 "ExpertAttention: mask: row %d reads none of the %d columns, and has no softmax",
                 r, columns);
        if (parts.empty() || !nested(parts.back().columns, read)) parts.push_back({r, {}, {}});
        Columns& part = parts.back();
        if (read.size() > part.columns.size()) part.columns.swap(read);
        part.lengths.push_back(count);
    }
    return parts;
}

}  // namespace smolvla::ort

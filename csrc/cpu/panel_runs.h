// Which rows of which stacked weights the columns of a panel are.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"

namespace smolvla::cpu {

// Columns [at, at + count) of one panel are rows [row, row + count) of weight number `part`.
struct Run {
    int part, row, count, at;
};

// The runs of a panel, `make(run)` for each.
template <class Make>
void runs_of(int panel, const std::vector<int>& out, bool gated, const Make& make) {
    if (gated) {
        for (int part = 0; part < 2; ++part)
            make(Run{part, 16 * panel, std::min(16, out[size_t(part)] - 16 * panel), 16 * part});
        return;
    }
    const int begin = panel * kPanel;
    for (int part = 0, first = 0; part < static_cast<int>(out.size()); ++part) {
        const int rows = out[size_t(part)];
        const int from = std::max(begin, first), to = std::min(begin + kPanel, first + rows);
        if (from < to) make(Run{part, from - first, to - from, from - begin});
        first += rows;
    }
}

}  // namespace smolvla::cpu

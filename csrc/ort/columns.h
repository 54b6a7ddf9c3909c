// Which columns the rows of an attention mask may read.
#pragma once

#include <cstdint>
#include <vector>

namespace smolvla::ort {

// Rows [first, first + lengths.size()) of a mask, of which row i reads exactly the first lengths[i]
// of `columns`, in ascending order.
struct Columns {
    int first;
    std::vector<int> columns;
    std::vector<int> lengths;
};

// The mask [rows, columns] as few such parts: each takes as many rows as fit. SmolVLA's masks
// (some valid columns, then causal) are one part; a mask of any other form costs a part, and a
// packing of keys and values, for every change. Raises an input error for a row that reads nothing.
std::vector<Columns> readable(const uint8_t* mask, int rows, int columns);

}  // namespace smolvla::ort

// The operators behind smolvla_edge.ops, by file. Arguments are named and described there.
#pragma once

#include "bindings/cuda_call.h"

namespace smolvla::bindings {

void bind_cuda_linear(py::module_& m);
void bind_cuda_attention(py::module_& m);
void bind_cuda_rows(py::module_& m);
void bind_cuda_images(py::module_& m);

// "float32" or "bfloat16", of an argument `dtype`.
inline Element float_element(const std::string& name) {
    for (Element e : {Element::f32, Element::bf16})
        if (name == element_name(e)) return e;
    fail(ErrorKind::input, "dtype: expected float32 or bfloat16, got %s", name.c_str());
}
// Both, the one that a new array gets in front.
inline std::vector<Element> floats(Element first) {
    return {first, first == Element::f32 ? Element::bf16 : Element::f32};
}

// Bytes from row to row of Storage::i8: whole chunks of what tensor cores are loaded with.
inline int64_t i8_row_bytes(int64_t columns) {
    return (words_of(int(columns), Storage::i8) * 4 + 15) / 16 * 16;
}
inline Wanted i8_rows(int64_t rows, int64_t columns) {
    return {{Element::i8}, {rows, i8_row_bytes(columns)}, true, 16};
}
// Such rows as kernels see them.
inline Mat i8_mat(const DeviceArray& a, int columns) {
    Mat m = Call::rows(a);
    m.cols = columns;
    return m;
}

}  // namespace smolvla::bindings

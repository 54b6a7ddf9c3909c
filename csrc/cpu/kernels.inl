// All CPU kernels, written once over F32x16. An ISA's translation unit sets its target pragma,
// opens its namespace, includes a simd/ header and then this file (see isa_avx512.cpp).
//
// Numerics, the same for every ISA: a dot product is summed in chains of kDepthBlock fused
// multiply-adds in order of k, and the chains are added in order. A lane is one output, so neither
// the tile height nor the thread count nor the register width can change a result.
#include "cpu/kernels/activation.inl"
#include "cpu/kernels/gemm.inl"
#include "cpu/kernels/norm.inl"
#include "cpu/kernels/quantize.inl"
#include "cpu/kernels/rows.inl"
#include "cpu/kernels/softmax.inl"
#include "cpu/kernels/table.inl"

// What is done to a sum before it is stored, for every GEMM.
#pragma once

#include "cuda/kernels.h"
#include "cuda/ptx.h"

namespace smolvla::cuda {

// EXACT: with the functions of the C library, for float32; else with the fast ones.
template <bool EXACT>
__device__ __forceinline__ float silu(float x) {
    return EXACT ? x / (1.0f + expf(-x)) : silu_fast(x);
}

template <bool EXACT>
__device__ __forceinline__ float activated(Activation activation, float x) {
    if (activation == Activation::silu) return silu<EXACT>(x);
    if (activation == Activation::gelu_tanh) {
        if (!EXACT) return gelu_tanh_fast(x);
        const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
        return 0.5f * x * (1.0f + tanhf(u));
    }
    return x;
}

__device__ __forceinline__ float widened(float v) { return v; }
__device__ __forceinline__ float widened(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ void narrow(float v, float& to) { to = v; }
__device__ __forceinline__ void narrow(float v, __nv_bfloat16& to) { to = __float2bfloat16_rn(v); }

__device__ __forceinline__ void put(const Mat& y, int row, int column, float value) {
    float* to = y.data + row * y.ld;
    if (y.storage == Storage::f32)
        to[column] = value;
    else
        reinterpret_cast<__nv_bfloat16*>(to)[column] = __float2bfloat16_rn(value);
}

__device__ __forceinline__ float get(const Mat& x, int row, int column) {
    const float* from = x.data + row * x.ld;
    if (x.storage == Storage::f32) return from[column];
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(from)[column]);
}

// Four numbers that follow each other, of which `count` are there; the others become zero. `wide`:
// all four may be read at once.
__device__ __forceinline__ void load_four(const float* from, int count, bool wide, float (&to)[4]) {
    if (wide && count >= 4) {
        const float4 all = *reinterpret_cast<const float4*>(from);
        to[0] = all.x, to[1] = all.y, to[2] = all.z, to[3] = all.w;
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = i < count ? from[i] : 0.0f;
}

__device__ __forceinline__ void store_four(const Mat& y, int row, int column, int count, bool wide,
                                           const float (&v)[4]) {
    float* to = y.data + row * y.ld;
    if (wide && count >= 4 && y.storage == Storage::f32) {
        *reinterpret_cast<float4*>(to + column) = make_float4(v[0], v[1], v[2], v[3]);
    } else if (wide && count >= 4) {
        const uint2 pairs = {pack_bf162(v[0], v[1]), pack_bf162(v[2], v[3])};
        *reinterpret_cast<uint2*>(reinterpret_cast<__nv_bfloat16*>(to) + column) = pairs;
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < count) put(y, row, column + i, v[i]);
    }
}

// Stores a block's tile: ROWS x columns sums from (row0, column0) of what the weight's rows give,
// `columns` a multiple of 16.
// Sums come out of shared memory, four at a time, by sums(row, column, to) with both counted from
// the tile's corner: so what a thread does here is written once in the kernel, not once for every
// sum that its registers held, and rows are read and written in runs.
template <bool EXACT, int ROWS, int THREADS, class Sums>
__device__ __forceinline__ void finish_tile(const Epilogue& e, int row0, int column0, int columns,
                                            const Sums& sums) {
    const float* bias = e.bias && e.bias_row ? e.bias + *e.bias_row * e.bias_ld : e.bias;
    const int units = e.gated ? columns / 8 : columns / 4;  // of four results, in a row of the tile
#pragma unroll 1
    for (int unit = threadIdx.x; unit < ROWS * units; unit += THREADS) {
        const int r = unit / units, u = unit % units, row = row0 + r;
        const int at = e.gated ? u / 2 * 16 + u % 2 * 4 : u * 4;  // the first of its sums
        const int packed = column0 + at, column = e.gated ? packed / 16 * 8 + packed % 8 : packed;
        const int count = e.y.cols - column;
        if (row >= e.y.rows || count <= 0) continue;
        float v[4], other[4];
        sums(r, at, v);
        if (bias) {
            load_four(bias + packed, count, e.wide, other);
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] += other[i];
        }
        if (e.gated) {
            sums(r, at + 8, other);
            float up_bias[4] = {};
            if (bias) load_four(bias + packed + 8, count, e.wide, up_bias);
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] = silu<EXACT>(v[i]) * (other[i] + up_bias[i]);
        } else if (e.activation != Activation::none) {
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] = activated<EXACT>(e.activation, v[i]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] *= e.scale;
        if (e.column_scale) {
            load_four(e.column_scale + column, count, e.wide, other);
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] *= other[i];
        }
        if (e.residual) {
            load_four(e.residual + row * e.residual_ld + column, count, e.wide, other);
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] += other[i];
        }
        store_four(e.y, row, column, count, e.wide, v);
    }
}

// Whether four numbers of everything that the epilogue reads and writes lie as a vector.
inline bool lies_wide(const Epilogue& e) {
    const auto aligned = [](const void* p, ptrdiff_t ld, size_t bytes) {
        return reinterpret_cast<uintptr_t>(p) % bytes == 0 && ld * sizeof(float) % bytes == 0;
    };
    return aligned(e.bias, e.bias_row ? e.bias_ld : 0, 16) && aligned(e.column_scale, 0, 16) &&
           aligned(e.residual, e.residual ? e.residual_ld : 0, 16) &&
           aligned(e.y.data, e.y.ld, e.y.storage == Storage::f32 ? 16 : 8);
}

}  // namespace smolvla::cuda

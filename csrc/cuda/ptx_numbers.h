// Bits and numbers: register tricks that turn codes into 16-bit floats, and the approximations of
// exp2 and 1/x that every kernel uses. Included by ptx.h.
#pragma once

#include "cuda/device.h"

namespace smolvla::cuda {

// --- registers as pairs --------------------------------------------------------------------------

template <class To, class From>
__device__ __forceinline__ To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
#if defined(SMOLVLA_CUDA_EMULATED)
    return emulator::bit_cast<To>(from);
#else
    To to;
    memcpy(&to, &from, sizeof to);  // a move, or nothing
    return to;
#endif
}
__device__ __forceinline__ __half2 as_half2(uint32_t bits) { return bits_as<__half2>(bits); }
__device__ __forceinline__ __nv_bfloat162 as_bf162(uint32_t bits) {
    return bits_as<__nv_bfloat162>(bits);
}
__device__ __forceinline__ uint32_t as_bits(__nv_bfloat162 pair) { return bits_as<uint32_t>(pair); }
// Rounded to nearest even; low is the lower index.
__device__ __forceinline__ uint32_t pack_bf162(float low, float high) {
    return as_bits(__floats2bfloat162_rn(low, high));
}

// Bit i of the result is bit (4 a_i + 2 b_i + c_i) of TABLE; (a & b) | c is 0xea.
template <int TABLE>
__device__ __forceinline__ uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
#if defined(SMOLVLA_CUDA_EMULATED)
    uint32_t result = 0;
    if (TABLE & 1) result |= ~a & ~b & ~c;
    if (TABLE & 2) result |= ~a & ~b & c;
    if (TABLE & 4) result |= ~a & b & ~c;
    if (TABLE & 8) result |= ~a & b & c;
    if (TABLE & 16) result |= a & ~b & ~c;
    if (TABLE & 32) result |= a & ~b & c;
    if (TABLE & 64) result |= a & b & ~c;
    if (TABLE & 128) result |= a & b & c;
    return result;
#else
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
    return result;
#endif
}
constexpr int kAndOr = 0xea;

// --- codes to floats -----------------------------------------------------------------------------
// A word holds eight 4-bit codes, each plus 8: nibble i in bits 4i .. 4i+3. Out comes
//     out[i] = (nibble i - 8, nibble i + 4 - 8)        i = 0..3
// so element 2i of eight belongs into nibble i and element 2i + 1 into nibble i + 4. Exact.

// A nibble under 0x4300 is the bfloat16 128 + n; a nibble that lies higher has no room there.
__device__ __forceinline__ void expand_s4_bf16(uint32_t word, __nv_bfloat162 (&out)[4]) {
    const __nv_bfloat162 one = as_bf162(0x3f803f80), bias = as_bf162(0xc308c308);  // -136
#pragma unroll
    for (int i = 0; i < 4; ++i)
        out[i] =
            __hfma2(as_bf162(lop3<kAndOr>(word >> (4 * i), 0x000f000f, 0x43004300)), one, bias);
}

// --- floats to codes -----------------------------------------------------------------------------

// To nearest, ties to even.
__device__ __forceinline__ int round_to_int(float x) { return __float2int_rn(x); }
// Four bytes of values within int8, a in the lowest.
__device__ __forceinline__ uint32_t pack_s8(int a, int b, int c, int d) {
    const uint32_t low = __byte_perm(uint32_t(a), uint32_t(b), 0x0040);
    const uint32_t high = __byte_perm(uint32_t(c), uint32_t(d), 0x0040);
    return __byte_perm(low, high, 0x5410);
}

// --- functions -----------------------------------------------------------------------------------
// ex2.approx is off by 2^-22 of the value at most and rcp.approx by 1 ulp, so silu and gelu are
// good to a few 2^-22: below the rounding of bfloat16 by far, and used for that alone. The float32
// path calls expf and tanhf.

__device__ __forceinline__ float exp2_fast(float x) {
#if defined(SMOLVLA_CUDA_EMULATED)
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}
__device__ __forceinline__ float reciprocal_fast(float x) {
#if defined(SMOLVLA_CUDA_EMULATED)
    return 1.0f / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}
// x / (1 + exp(-x))
__device__ __forceinline__ float silu_fast(float x) {
    return x * reciprocal_fast(1.0f + exp2_fast(-1.4426950408889634f * x));
}
// x (1 + tanh u) / 2 with u = sqrt(2/pi) (x + 0.044715 x^3), which is x / (1 + exp(-2u)).
__device__ __forceinline__ float gelu_tanh_fast(float x) {
    const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return x * reciprocal_fast(1.0f + exp2_fast(-2.8853900817779268f * u));
}

}  // namespace smolvla::cuda

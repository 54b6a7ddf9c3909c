// __half, to read and to write, and __nv_bfloat16, to calculate with as well: storage of 16 bits,
// everything rounded once, to nearest even.
//
// The exact result of an operation is brought to float by rounding to odd (inexact: the last bit
// is set), which keeps the second rounding, to 8 bits, correct.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vector_types.h"

namespace emulator {

template <class To, class From>
inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline float half_to_float(uint16_t h) {
    const uint32_t magnitude = h & 0x7fffu;
    const float scaled = bit_cast<float>(magnitude << 13) * 0x1p112f;
    const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
    return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | uint32_t(h & 0x8000u) << 16);
}

inline uint16_t float_to_half(float f) {
    const uint32_t bits = bit_cast<uint32_t>(f), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // from 65520 on
    if (magnitude < 0x38800000u) {  // below 2^-14: one unit is 2^-24, as that of 0.5f + x
        const float shifted = bit_cast<float>(magnitude) + 0.5f;
        return uint16_t(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000u));
    }
    const uint32_t odd = (magnitude >> 13) & 1;
    return uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

inline float bfloat16_to_float(uint16_t b) { return bit_cast<float>(uint32_t(b) << 16); }

inline uint16_t float_to_bfloat16(float f) {
    const uint32_t bits = bit_cast<uint32_t>(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// a * b + c, where a * b is exact in double, rounded to odd.
inline float fma_to_odd(float a, float b, float c) {
    const double product = double(a) * double(b), sum = product + double(c);
    const double part = sum - product;
    const double error = (product - (sum - part)) + (double(c) - part);
    double exact = sum;
    if (error != 0 && std::isfinite(sum)) {
        uint64_t bits = bit_cast<uint64_t>(sum);
        if ((error < 0) != (sum < 0)) --bits;  // the sum lies beyond the exact value
        exact = bit_cast<double>(bits | 1);
    }
    const float rounded = float(exact);
    if (double(rounded) == exact || !std::isfinite(rounded)) return rounded;
    uint32_t bits = bit_cast<uint32_t>(rounded);
    if (std::fabs(double(rounded)) > std::fabs(exact)) --bits;
    return bit_cast<float>(bits | 1);
}

}  // namespace emulator

struct __half {
    uint16_t bits;
};
struct alignas(4) __half2 {
    __half x, y;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline __half __float2half_rn(float f) { return {emulator::float_to_half(f)}; }
inline float __half2float(__half h) { return emulator::half_to_float(h.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return {emulator::float_to_bfloat16(f)}; }
inline float __bfloat162float(__nv_bfloat16 b) { return emulator::bfloat16_to_float(b.bits); }

inline float __low2float(__half2 a) { return __half2float(a.x); }
inline float __high2float(__half2 a) { return __half2float(a.y); }
inline float __low2float(__nv_bfloat162 a) { return __bfloat162float(a.x); }
inline float __high2float(__nv_bfloat162 a) { return __bfloat162float(a.y); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    return __float2bfloat16_rn(
        emulator::fma_to_odd(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}

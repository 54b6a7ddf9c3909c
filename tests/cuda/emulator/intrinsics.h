// CUDA's scalar intrinsics, for the host.
#pragma once

#include <math.h>  // the names without std, as CUDA has them

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "numbers.h"

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

inline float __int_as_float(int x) { return emulator::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bit_cast<float>(x); }
inline int __float_as_int(float x) { return emulator::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator::bit_cast<unsigned>(x); }

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return std::exp(a); }
inline float __logf(float a) { return std::log(a); }
inline float __saturatef(float a) { return a > 0.0f ? std::fmin(a, 1.0f) : 0.0f; }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
// nearbyint: to nearest even, and a conversion that saturates as the device's does.
inline int __float2int_rn(float a) {
    if (std::isnan(a)) return 0;
    if (a >= 2147483648.0f) return INT32_MAX;
    if (a < -2147483648.0f) return INT32_MIN;
    return int(std::nearbyint(a));
}
inline int __float2int_rz(float a) {
    if (std::isnan(a)) return 0;
    if (a >= 2147483648.0f) return INT32_MAX;
    if (a < -2147483648.0f) return INT32_MIN;
    return int(a);
}
inline int __float2int_rd(float a) { return __float2int_rz(std::floor(a)); }
inline float __int2float_rn(int a) { return float(a); }
inline float __uint2float_rn(unsigned a) { return float(a); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; ++i) y |= (x >> i & 1u) << (31 - i);
    return y;
}
inline int __mulhi(int a, int b) { return int((int64_t(a) * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((uint64_t(high) << 32) | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned((((uint64_t(high) << 32) | low) << (shift & 31)) >> 32);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned nibble = selector >> (4 * i) & 0xf;
        unsigned byte = unsigned(bytes >> (8 * (nibble & 7))) & 0xff;
        if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, eight times
        result |= byte << (8 * i);
    }
    return result;
}
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) c += int(int8_t(a >> (8 * i))) * int(int8_t(b >> (8 * i)));
    return c;
}

template <class T>
T __ldg(const T* address) {
    return *address;
}
template <class T>
T __ldcs(const T* address) {
    return *address;
}
template <class T>
T __ldcg(const T* address) {
    return *address;
}
template <class T>
void __stcs(T* address, T value) {
    *address = value;
}
template <class T>
void __stcg(T* address, T value) {
    *address = value;
}

// Blocks may run on several threads of the operating system.
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline int atomicAdd(int* address, int value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline unsigned atomicAdd(unsigned* address, unsigned value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline int atomicExch(int* address, int value) {
    return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}
inline unsigned atomicExch(unsigned* address, unsigned value) {
    return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}
inline int atomicCAS(int* address, int expected, int value) {
    __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED,
                                __ATOMIC_RELAXED);
    return expected;
}
inline unsigned atomicCAS(unsigned* address, unsigned expected, unsigned value) {
    __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED,
                                __ATOMIC_RELAXED);
    return expected;
}
template <class T, class Fn>
T emulator_atomic(T* address, Fn fn) {
    uint32_t seen = __atomic_load_n(reinterpret_cast<uint32_t*>(address), __ATOMIC_RELAXED);
    for (;;) {
        const T old = emulator::bit_cast<T>(seen);
        if (__atomic_compare_exchange_n(reinterpret_cast<uint32_t*>(address), &seen,
                                        emulator::bit_cast<uint32_t>(fn(old)), false,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return old;
    }
}
inline float atomicAdd(float* address, float value) {
    return emulator_atomic(address, [=](float old) { return old + value; });
}
inline int atomicMax(int* address, int value) {
    return emulator_atomic(address, [=](int old) { return std::max(old, value); });
}
inline int atomicMin(int* address, int value) {
    return emulator_atomic(address, [=](int old) { return std::min(old, value); });
}
inline unsigned atomicMax(unsigned* address, unsigned value) {
    return emulator_atomic(address, [=](unsigned old) { return std::max(old, value); });
}

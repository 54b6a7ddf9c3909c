// CUDA's scalar functions that kernels use, for the host.
#pragma once

#include <math.h>  // the names without std, as CUDA has them

#include <cmath>
#include <cstdint>

// CUDA has them for other types too. Here those do not compile: they would become int, unseen.
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
template <class A, class B>
int min(A, B) = delete;
template <class A, class B>
int max(A, B) = delete;

// nearbyint: to nearest even, and a conversion that saturates as the device's does.
inline int __float2int_rn(float a) {
    if (std::isnan(a)) return 0;
    if (a >= 2147483648.0f) return INT32_MAX;
    if (a < -2147483648.0f) return INT32_MIN;
    return int(std::nearbyint(a));
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

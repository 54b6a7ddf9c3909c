// CUDA's small vectors, with its alignments.
#pragma once

#include <cstdint>

#define EMULATOR_VECTOR(type, word, a1, a2, a4)                                 \
    struct type##1 { word x; };                                                 \
    struct alignas(a2) type##2 { word x, y; };                                  \
    struct type##3 { word x, y, z; };                                           \
    struct alignas(a4) type##4 { word x, y, z, w; };                            \
    inline type##2 make_##type##2(word x, word y) { return {x, y}; }            \
    inline type##3 make_##type##3(word x, word y, word z) { return {x, y, z}; } \
    inline type##4 make_##type##4(word x, word y, word z, word w) { return {x, y, z, w}; }

EMULATOR_VECTOR(char, signed char, 1, 2, 4)
EMULATOR_VECTOR(uchar, unsigned char, 1, 2, 4)
EMULATOR_VECTOR(short, short, 2, 4, 8)
EMULATOR_VECTOR(ushort, unsigned short, 2, 4, 8)
EMULATOR_VECTOR(int, int, 4, 8, 16)
EMULATOR_VECTOR(uint, unsigned, 4, 8, 16)
EMULATOR_VECTOR(float, float, 4, 8, 16)
EMULATOR_VECTOR(double, double, 8, 16, 16)
#undef EMULATOR_VECTOR

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// mma.sync: the layouts of the PTX ISA, the arithmetic at its best. Products are exact; sums are
// float32, one rounding each, in order of k. A tensor core sums in groups and truncates, so tests
// that must hold on both bound the error instead of comparing bits.
#include "grid.h"
#include "numbers.h"
#include "warp.h"

namespace emulator {

namespace {

// The compiler makes a second version of these for AVX2, chosen when the program starts.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EMULATOR_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define EMULATOR_CLONES
#endif

EMULATOR_CLONES void widen(const uint16_t* from, float* to, int count) {
    for (int i = 0; i < count; ++i) to[i] = bfloat16_to_float(from[i]);
}

// c [16][8] += a [16][16] b, with b as [8 columns][16].
EMULATOR_CLONES void multiply(const float* a, const float* columns, float* c) {
    using Eight = float __attribute__((vector_size(32)));
    Eight b[16];
    for (int k = 0; k < 16; ++k)
        for (int n = 0; n < 8; ++n) b[k][n] = columns[16 * n + k];
    for (int m = 0; m < 16; ++m) {
        Eight sum;
        std::memcpy(&sum, c + 8 * m, sizeof sum);
        for (int k = 0; k < 16; ++k) sum += b[k] * a[16 * m + k];
        std::memcpy(c + 8 * m, &sum, sizeof sum);
    }
}

// A's 16 rows, then B's 8 columns, of 8 words along k each: two 16-bit or four 8-bit values.
void gather(const Warp& warp, uint32_t* words) {
    for (int l = 0; l < kLanes; ++l) {
        const int g = l / 4, t = l % 4;
        const uint32_t* in = warp.in[l];
        uint32_t *a = words + 8 * g + t, *b = words + 8 * (16 + g) + t;
        a[0] = in[0], a[8 * 8] = in[1], a[4] = in[2], a[8 * 8 + 4] = in[3];
        b[0] = in[4], b[4] = in[5];
    }
}

void run_16(Warp& warp, uint32_t) {
    alignas(64) uint32_t words[(16 + 8) * 8];
    alignas(64) float values[(16 + 8) * 16], c[16 * 8];
    gather(warp, words);
    for (int l = 0; l < kLanes; ++l) {
        const int g = l / 4, t = l % 4;
        std::memcpy(c + 8 * g + 2 * t, warp.in[l] + 6, 8);
        std::memcpy(c + 8 * (g + 8) + 2 * t, warp.in[l] + 8, 8);
    }
    uint16_t raw[(16 + 8) * 16];
    std::memcpy(raw, words, sizeof words);
    widen(raw, values, (16 + 8) * 16);
    multiply(values, values + 16 * 16, c);
    for (int l = 0; l < kLanes; ++l) {
        const int g = l / 4, t = l % 4;
        std::memcpy(warp.out[l], c + 8 * g + 2 * t, 8);
        std::memcpy(warp.out[l] + 2, c + 8 * (g + 8) + 2 * t, 8);
    }
}

// d [16][8] = a [16][32] times columns [8][32].
EMULATOR_CLONES void dots(const int16_t* a, const int16_t* columns, int32_t* d) {
    for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 8; ++n) {
            int32_t sum = 0;
            for (int k = 0; k < 32; ++k)
                sum += int32_t(a[32 * m + k]) * int32_t(columns[32 * n + k]);
            d[8 * m + n] = sum;
        }
    }
}

void run_8(Warp& warp, uint32_t) {
    alignas(64) uint32_t words[(16 + 8) * 8];
    gather(warp, words);
    int8_t raw[(16 + 8) * 32];
    alignas(64) int16_t values[(16 + 8) * 32];
    alignas(64) int32_t d[16 * 8];
    std::memcpy(raw, words, sizeof words);
    for (int i = 0; i < (16 + 8) * 32; ++i) values[i] = raw[i];
    dots(values, values + 16 * 32, d);
    for (int l = 0; l < kLanes; ++l) {
        const int g = l / 4, t = l % 4;
        for (int i = 0; i < 4; ++i)  // wraps, as without .satfinite
            warp.out[l][i] = warp.in[l][6 + i] + uint32_t(d[8 * (g + i / 2 * 8) + 2 * t + i % 2]);
    }
}

const WarpOperation kBf16 = {"mma.m16n8k16.bf16", true, run_16};
const WarpOperation kS8 = {"mma.m16n8k32.s8", true, run_8};

template <class T>
void mma(const WarpOperation& operation, T (&d)[4], const uint32_t (&a)[4], uint32_t b0,
         uint32_t b1) {
    Lane& me = *current;
    uint32_t* in = me.warp->in[me.lane];
    std::memcpy(in, a, 16);
    in[4] = b0, in[5] = b1;
    std::memcpy(in + 6, d, 16);
    meet(operation, kAll);
    std::memcpy(d, me.warp->out[me.lane], 16);
}

}  // namespace

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma(kBf16, d, a, b0, b1);
}
void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma(kS8, d, a, b0, b1);
}

}  // namespace emulator

// The 16-bit types of the emulator against definitions in double, all of them where that is
// possible; and the register tricks of ptx_numbers.h, all codes.
#include <cmath>
#include <random>

#include "cuda/ptx.h"
#include "device_array.h"

using namespace smolvla::cuda;

namespace {

// The value of a 16-bit float of `mantissa` stored bits, as IEEE 754 has it.
double value_of(uint16_t bits, int mantissa) {
    const int exponent_bits = 15 - mantissa, bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = (bits >> mantissa) & ((1 << exponent_bits) - 1);
    const int fraction = bits & ((1 << mantissa) - 1);
    const double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1) return fraction ? std::nan("") : sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - mantissa);
    return sign * std::ldexp(fraction + (1 << mantissa), exponent - bias - mantissa);
}

bool same(double a, double b) { return a == b || (a != a && b != b); }

// Nearest of the finite ones and infinity, ties to the even fraction. exact: not NaN.
uint16_t nearest(double exact, int mantissa) {
    const uint16_t sign = std::signbit(exact) ? 0x8000 : 0;
    const double magnitude = std::fabs(exact);
    const uint16_t infinity = uint16_t(((1 << (15 - mantissa)) - 1) << mantissa);
    uint16_t low = 0, high = infinity;  // value(low) <= magnitude < value(high), as numbers order
    if (magnitude == INFINITY) return sign | infinity;
    while (high - low > 1) {
        const uint16_t middle = uint16_t((low + high) / 2);
        (value_of(middle, mantissa) <= magnitude ? low : high) = middle;
    }
    // Above the largest: as if there were one more of the same spacing.
    const double below = value_of(low, mantissa);
    const double above = high == infinity ? 2 * below - value_of(uint16_t(low - 1), mantissa)
                                          : value_of(high, mantissa);
    const double down = magnitude - below, up = above - magnitude;
    const bool take_high = up < down || (up == down && (high & 1) == 0);
    return sign | (take_high ? high : low);
}

uint16_t half_bits(float x) { return bits_as<uint16_t>(__float2half_rn(x)); }
uint16_t bf16_bits(float x) { return bits_as<uint16_t>(__float2bfloat16_rn(x)); }

void test_all_values() {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
        const uint32_t pair = bits | (bits ^ 0xffff) << 16;
        const float half = __half2float(bits_as<__half>(uint16_t(bits)));
        const float brain = __bfloat162float(bits_as<__nv_bfloat16>(uint16_t(bits)));
        CHECK(same(half, value_of(uint16_t(bits), 10)));
        CHECK(same(brain, value_of(uint16_t(bits), 7)));
        CHECK(same(__low2float(as_half2(pair)), half));
        CHECK(same(__high2float(as_half2(pair)), value_of(uint16_t(~bits), 10)));
        if (half == half) CHECK(half_bits(half) == bits);
        if (brain == brain) CHECK(bf16_bits(brain) == bits);
    }
    CHECK(half_bits(NAN) == 0x7fff);
    CHECK(bf16_bits(-NAN) == 0x7fff);
}

void test_rounding(std::mt19937& random) {
    for (int i = 0; i < 200000; ++i) {
        // Random bits, and the neighbourhood of ties.
        uint32_t bits = uint32_t(random());
        if (i % 3 == 1) bits = (bits & ~0x1fffu) | 0x1000u | (random() % 3 - 1);
        if (i % 3 == 2) bits = (bits & ~0xffffu) | 0x8000u | (random() % 3 - 1);
        const float x = bits_as<float>(bits);
        if (x != x) continue;
        CHECK(half_bits(x) == nearest(x, 10));
        CHECK(bf16_bits(x) == nearest(x, 7));
    }
}

// a b + c: with exponents so near each other that a double holds it, and with a c below a double's
// last place, which decides ties.
void test_arithmetic(std::mt19937& random) {
    const auto draw = [&](uint32_t lowest_exponent) {
        const uint32_t exponent = lowest_exponent + uint32_t(random()) % 18;
        return bits_as<__nv_bfloat16>(uint16_t((random() & 0x807f) | exponent << 7));
    };
    for (int i = 0; i < 200000; ++i) {
        const bool tiny = i % 2;
        const __nv_bfloat16 a = draw(118), b = draw(118), c = draw(tiny ? 30 : 118);
        const double product = double(__bfloat162float(a)) * __bfloat162float(b);
        const double added = __bfloat162float(c);
        const double exact =
            tiny ? std::nextafter(product, std::copysign(INFINITY, added)) : product + added;
        const __nv_bfloat162 got = __hfma2({a, b}, {b, a}, {c, c});
        if (exact != 0) CHECK(bf16_bits(__low2float(got)) == nearest(exact, 7));
        CHECK(__low2float(got) == __high2float(got));
    }
}

void test_expansions() {
    for (uint32_t base = 0; base < 0x10000; ++base) {
        // Every code in every place, beside every neighbour.
        const uint32_t word = base * 0x9e3779b1u ^ base;
        const auto code = [=](int i) { return int(word >> (4 * i) & 15) - 8; };
        __nv_bfloat162 pairs[4];
        expand_s4_bf16(word, pairs);
        for (int i = 0; i < 4; ++i)
            CHECK(__low2float(pairs[i]) == code(i) && __high2float(pairs[i]) == code(i + 4));
        CHECK(pack_s8(int8_t(word), int8_t(word >> 8), int8_t(word >> 16), int8_t(word >> 24)) ==
              word);
    }
}

void test_bits() {
    const uint32_t a = 0xf0f0f0f0u, b = 0xccccccccu, c = 0xaaaaaaaau;  // all eight cases
    CHECK(lop3<kAndOr>(a, b, c) == ((a & b) | c));
    CHECK(lop3<0x96>(a, b, c) == (a ^ b ^ c));
    CHECK(lop3<0xca>(a, b, c) == ((a & b) | (~a & c)));
    CHECK(lop3<0x01>(a, b, c) == ~(a | b | c));
    CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x7531) == 0x77553311u);
    CHECK(__byte_perm(0x00008000u, 0, 0x9998) == 0xffffff00u);  // signs of bytes 1, 1, 1, 0
    CHECK(round_to_int(0.5f) == 0 && round_to_int(1.5f) == 2 && round_to_int(-2.5f) == -2);
    CHECK(pack_bf162(1.0f, -2.0f) == 0xc0003f80u);
}

void test_functions() {
    for (float x = -20.0f; x <= 20.0f; x += 0.0137f) {
        const double u = 0.79788456080286536 * (double(x) + 0.044715 * double(x) * x * x);
        const double gelu = x / (1 + std::exp(-2 * u)), silu = x / (1 + std::exp(-double(x)));
        // u has roundings of its own, worth |u| units in the exponential, which may overflow: then
        // the result is 0 instead of less than |x| / 2^126.
        const double least = std::fabs(double(x)) * 0x1p-126;
        CHECK(std::fabs(silu_fast(x) - silu) <=
              0x1p-22 * (std::fabs(x) + 4) * std::fabs(silu) + least);
        CHECK(std::fabs(gelu_tanh_fast(x) - gelu) <=
              0x1p-21 * (std::fabs(u) + 4) * std::fabs(gelu) + least);
    }
    CHECK(silu_fast(-200.0f) == 0 && silu_fast(200.0f) == 200.0f);
    CHECK(gelu_tanh_fast(-200.0f) == 0 && gelu_tanh_fast(200.0f) == 200.0f);
}

}  // namespace

int main() {
    std::mt19937 random{5};
    test_all_values();
    test_rounding(random);
    test_arithmetic(random);
    test_expansions();
    test_bits();
    test_functions();
    return report("cuda_numbers");
}

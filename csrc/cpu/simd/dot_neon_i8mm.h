// Integer products in ASIMD with FEAT_I8MM: smmla multiplies two rows of eight int8 with two
// columns of eight and adds the 2 x 2 sums to four 32-bit lanes. A panel therefore holds runs of
// eight k. Included after simd/neon.h, inside the ISA's namespace; kernels/dot_pairs.inl uses it.

// Rows a and b (eight k each) times columns 2 i and 2 i + 1: sums (a, 2 i), (a, 2 i + 1), (b, 2 i),
// (b, 2 i + 1).
inline int32x4_t add_products(int8x16_t rows, int8x16_t columns, int32x4_t sum) {
    // By hand: clang 14 has the intrinsic only in files that are built for it as a whole.
    __asm__("smmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(rows), "w"(columns));
    return sum;
}
inline int8x16_t two_rows(const float* a, const float* b) {
    return vcombine_s8(vld1_s8(reinterpret_cast<const int8_t*>(a)),
                       vld1_s8(reinterpret_cast<const int8_t*>(b)));
}

// load: eight k of columns 16 * half + 2 i and the next.
struct Codes8 {
    static constexpr int kRunBytes = kPanel * 8;
    static constexpr CodeOrder kOrder = {0, 8};
    static int8x16_t load(const char* run, int half, int i) {
        return vld1q_s8(reinterpret_cast<const int8_t*>(run) + 128 * half + 16 * i);
    }
};

struct Codes4 {
    static constexpr int kRunBytes = kPanel * 4;
    static constexpr CodeOrder kOrder = {0, 8};
    static int8x16_t load(const char* run, int half, int i) {
        const uint8x16_t both = vld1q_u8(reinterpret_cast<const uint8_t*>(run) + 16 * i);
        const uint8x16_t codes = half == 0 ? vandq_u8(both, vdupq_n_u8(15)) : vshrq_n_u8(both, 4);
        return vsubq_s8(vreinterpretq_s8_u8(codes), vdupq_n_s8(8));
    }
};

// Integer products in ASIMD: with SMOLVLA_SDOT in one instruction; otherwise in 16 bits, added in
// pairs (at most 2 * 127 * 127, which fits), then in 32. Included after simd/neon.h, inside the
// ISA's namespace; semantics are those of dot_scalar.h.

struct Dots {
    int32x4_t v[4];

    static Dots broadcast(int32_t x) {
        const int32x4_t v = vdupq_n_s32(x);
        return {{v, v, v, v}};
    }
    F32x16 to_float() const {
        F32x16 r;
        for (int i = 0; i < 4; ++i) r.v[i] = vcvtq_f32_s32(v[i]);
        return r;
    }
};

using RowWord = int8x16_t;
inline RowWord row_word(const float* p) { return vreinterpretq_s8_f32(vdupq_n_f32(*p)); }

// Of four columns.
inline int32x4_t add_to(int8x16_t w, int8x16_t a, int32x4_t sum) {
#if defined(SMOLVLA_SDOT)
    // By hand: clang 14 has the intrinsic only in files that are built for it as a whole.
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(a));
    return sum;
#else
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(a)), high = vmull_high_s8(w, a);
    return vpadalq_s16(sum, vpaddq_s16(low, high));
#endif
}

struct Codes8 {
    struct Vector {
        int8x16_t v[4];
    };
    static constexpr int kRowBytes = kPanel * 4;
    static constexpr CodeOrder kOrder = {0, 4};
    static Vector load(const char* row, int half) {
        const int8_t* from = reinterpret_cast<const int8_t*>(row) + 64 * half;
        return {{vld1q_s8(from), vld1q_s8(from + 16), vld1q_s8(from + 32), vld1q_s8(from + 48)}};
    }
    static Dots add_products(const Vector& w, RowWord a, Dots sum) {
        for (int i = 0; i < 4; ++i) sum.v[i] = add_to(w.v[i], a, sum.v[i]);
        return sum;
    }
};

struct Codes4 : Codes8 {
    static constexpr int kRowBytes = kPanel * 2;
    static Vector load(const char* row, int half) {
        const uint8_t* from = reinterpret_cast<const uint8_t*>(row);
        Vector r;
        for (int i = 0; i < 4; ++i) {
            const uint8x16_t both = vld1q_u8(from + 16 * i);
            const uint8x16_t codes =
                half == 0 ? vandq_u8(both, vdupq_n_u8(15)) : vshrq_n_u8(both, 4);
            r.v[i] = vsubq_s8(vreinterpretq_s8_u8(codes), vdupq_n_s8(8));
        }
        return r;
    }
};

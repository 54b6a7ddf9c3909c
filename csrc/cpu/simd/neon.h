// Sixteen float lanes in four q registers. Needs nothing beyond AArch64 itself (ASIMD). Included
// inside the ISA's namespace; semantics are those of scalar.h.

struct F32x16 {
    float32x4_t v[4];

    static F32x16 zero() { return broadcast(0.0f); }
    static F32x16 broadcast(float x) {
        // In a register first: FMLA can take one element of it, whereas a load that spreads its
        // value (LD1R) takes a slot of the pipes that multiply.
        __asm__("" : "+w"(x));
        const float32x4_t v = vdupq_n_f32(x);
        return {{v, v, v, v}};
    }
    static F32x16 load(const float* p) {
        return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
    }
    // ASIMD has no masked load: a tail goes through a buffer.
    static F32x16 load_first(const float* p, int n) {
        if (n == 16) return load(p);
        float lane[16] = {};
        for (int i = 0; i < n; ++i) lane[i] = p[i];
        return load(lane);
    }
    void store(float* p) const {
        for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, v[i]);
    }
    void store_first(float* p, int n) const {
        if (n == 16) return store(p);
        float lane[16];
        store(lane);
        for (int i = 0; i < n; ++i) p[i] = lane[i];
    }
};

inline F32x16 operator+(F32x16 a, F32x16 b) {
    for (int i = 0; i < 4; ++i) a.v[i] = vaddq_f32(a.v[i], b.v[i]);
    return a;
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
    for (int i = 0; i < 4; ++i) a.v[i] = vsubq_f32(a.v[i], b.v[i]);
    return a;
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
    for (int i = 0; i < 4; ++i) a.v[i] = vmulq_f32(a.v[i], b.v[i]);
    return a;
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
    for (int i = 0; i < 4; ++i) a.v[i] = vdivq_f32(a.v[i], b.v[i]);
    return a;
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    for (int i = 0; i < 4; ++i) c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
    return c;
}
// A comparison and a selection: fmax and fmin would order zeros and give a NaN on either side.
inline F32x16 max(F32x16 a, F32x16 b) {
    for (int i = 0; i < 4; ++i) a.v[i] = vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]);
    return a;
}
inline F32x16 min(F32x16 a, F32x16 b) {
    for (int i = 0; i < 4; ++i) a.v[i] = vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]);
    return a;
}
inline F32x16 pow2_of_shifted(F32x16 t) {
    for (int i = 0; i < 4; ++i) {
        const int32x4_t n = vaddq_s32(vreinterpretq_s32_f32(t.v[i]), vdupq_n_s32(127));
        t.v[i] = vreinterpretq_f32_s32(vshlq_n_s32(n, 23));
    }
    return t;
}
inline F32x16 low_bf16(const uint32_t* p) {
    F32x16 r;
    for (int i = 0; i < 4; ++i)
        r.v[i] = vreinterpretq_f32_u32(vshlq_n_u32(vld1q_u32(p + 4 * i), 16));
    return r;
}
inline F32x16 high_bf16(const uint32_t* p) {
    const uint32x4_t mask = vdupq_n_u32(0xffff0000u);
    F32x16 r;
    for (int i = 0; i < 4; ++i)
        r.v[i] = vreinterpretq_f32_u32(vandq_u32(vld1q_u32(p + 4 * i), mask));
    return r;
}
inline F32x16 nearest(F32x16 x) {
    for (int i = 0; i < 4; ++i) x.v[i] = vrndnq_f32(x.v[i]);
    return x;
}
inline F32x16 times_pow2(F32x16 p, F32x16 n) {
    return p * pow2_of_shifted(n + F32x16::broadcast(12582912.0f));
}
inline uint32x4_t round_bf16(float32x4_t x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));
    const uint32x4_t zero = vandq_u32(bits, vdupq_n_u32(0x80000000u));
    uint32x4_t all = vbslq_u32(vceqq_f32(x, x), up, quiet);
    all = vbslq_u32(vtstq_u32(bits, vdupq_n_u32(0x7f800000)), all, zero);
    return vandq_u32(all, vdupq_n_u32(0xffff0000u));
}
inline F32x16 round_bf16(F32x16 x) {
    for (int i = 0; i < 4; ++i) x.v[i] = vreinterpretq_f32_u32(round_bf16(x.v[i]));
    return x;
}
inline void store_words(F32x16 x, float* p) {
    for (int i = 0; i < 2; ++i) {
        const uint32x4_t a = round_bf16(x.v[2 * i]), b = round_bf16(x.v[2 * i + 1]);
        const uint32x4_t words = vsriq_n_u32(vuzp1q_u32(a, b), vuzp2q_u32(a, b), 16);
        vst1q_f32(p + 4 * i, vreinterpretq_f32_u32(words));
    }
}

inline F32x16 high_halves(F32x16 words) {
    for (float32x4_t& v : words.v)
        v = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0xffff0000u)));
    return words;
}
inline F32x16 low_halves(F32x16 words) {
    for (float32x4_t& v : words.v)
        v = vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(v), 16));
    return words;
}
// Sixteen integers as bytes in order.
inline int8x16_t narrow(F32x16 x) {
    int16x4_t part[4];
    for (int i = 0; i < 4; ++i) part[i] = vmovn_s32(vcvtq_s32_f32(x.v[i]));
    return vcombine_s8(vmovn_s16(vcombine_s16(part[0], part[1])),
                       vmovn_s16(vcombine_s16(part[2], part[3])));
}
inline int32_t store_codes(F32x16 a, F32x16 b, bool by_turns, float* to) {
    const int8x16_t first = narrow(a), second = narrow(b);
    int8_t* out = reinterpret_cast<int8_t*>(to);
    vst1q_s8(out, by_turns ? vzip1q_s8(first, second) : first);
    vst1q_s8(out + 16, by_turns ? vzip2q_s8(first, second) : second);
    return vaddlvq_s8(first) + vaddlvq_s8(second);
}

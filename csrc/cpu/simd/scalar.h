// Sixteen float lanes in plain C++: the reference that every other ISA must equal bit for bit.
//
// All kernels are written once over F32x16 (kernels.inl). Because every operation below is exactly
// rounded by IEEE 754 (fma included) and every sum has a fixed order, an ISA that implements these
// operations with wider registers gives the same bytes. Included inside an ISA's namespace.

struct F32x16 {
    float lane[16];

    static F32x16 zero() { return broadcast(0.0f); }
    static F32x16 broadcast(float x) {
        F32x16 r;
        for (float& l : r.lane) l = x;
        return r;
    }
    static F32x16 load(const float* p) {
        F32x16 r;
        for (int i = 0; i < 16; ++i) r.lane[i] = p[i];
        return r;
    }
    // The first n lanes; the rest are zero.
    static F32x16 load_first(const float* p, int n) {
        F32x16 r = zero();
        for (int i = 0; i < n; ++i) r.lane[i] = p[i];
        return r;
    }
    void store(float* p) const {
        for (int i = 0; i < 16; ++i) p[i] = lane[i];
    }
    void store_first(float* p, int n) const {
        for (int i = 0; i < n; ++i) p[i] = lane[i];
    }
};

inline F32x16 operator+(F32x16 a, F32x16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
    return a;
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] -= b.lane[i];
    return a;
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] *= b.lane[i];
    return a;
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] /= b.lane[i];
    return a;
}
// a * b + c with one rounding.
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    for (int i = 0; i < 16; ++i) a.lane[i] = __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]);
    return a;
}
// x86's rule, which the vector units have: the second operand when the first is not larger (or
// NaN).
inline F32x16 max(F32x16 a, F32x16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}
inline F32x16 min(F32x16 a, F32x16 b) {
    for (int i = 0; i < 16; ++i) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}
// 2^n for n held in the low mantissa bits of t (t = 1.5 * 2^23 + n).
inline F32x16 pow2_of_shifted(F32x16 t) {
    for (int i = 0; i < 16; ++i) {
        uint32_t bits;
        __builtin_memcpy(&bits, &t.lane[i], 4);
        bits = (bits + 127u) << 23;
        __builtin_memcpy(&t.lane[i], &bits, 4);
    }
    return t;
}
// One half of a packed row of 32 bfloat16: word i holds column i (low) and column i + 16 (high).
inline F32x16 low_bf16(const uint32_t* p) {
    F32x16 r;
    for (int i = 0; i < 16; ++i) {
        uint32_t word;  // written as two uint16_t
        __builtin_memcpy(&word, p + i, 4);
        word <<= 16;
        __builtin_memcpy(&r.lane[i], &word, 4);
    }
    return r;
}
inline F32x16 high_bf16(const uint32_t* p) {
    F32x16 r;
    for (int i = 0; i < 16; ++i) {
        uint32_t word;
        __builtin_memcpy(&word, p + i, 4);
        word &= 0xffff0000u;
        __builtin_memcpy(&r.lane[i], &word, 4);
    }
    return r;
}
// The nearest integer, ties to even, of |x| < 2^22.
inline F32x16 nearest(F32x16 x) {
    const F32x16 shift = F32x16::broadcast(12582912.0f);  // 1.5 * 2^23
    return x + shift - shift;
}
// p * 2^n for an integer n; the result is a normal number or NaN.
inline F32x16 times_pow2(F32x16 p, F32x16 n) {
    return p * pow2_of_shifted(n + F32x16::broadcast(12582912.0f));
}
// To the nearest bfloat16, ties to even; subnormals to zero, NaN stays NaN.
inline F32x16 round_bf16(F32x16 x) {
    for (float& l : x.lane) {
        uint32_t bits;
        __builtin_memcpy(&bits, &l, 4);
        if (l != l)
            bits |= 0x00400000u;
        else if ((bits & 0x7f800000u) == 0)
            bits &= 0x80000000u;
        else
            bits += 0x7fffu + (bits >> 16 & 1u);
        bits &= 0xffff0000u;
        __builtin_memcpy(&l, &bits, 4);
    }
    return x;
}
// Sixteen values, rounded, in eight words: the even lane in the high half.
inline void store_words(F32x16 x, float* p) {
    const F32x16 rounded = round_bf16(x);
    for (int i = 0; i < 8; ++i) {
        uint32_t high, low;
        __builtin_memcpy(&high, &rounded.lane[2 * i], 4);
        __builtin_memcpy(&low, &rounded.lane[2 * i + 1], 4);
        high |= low >> 16;
        __builtin_memcpy(p + i, &high, 4);
    }
}

// The halves of sixteen words as bfloat16, widened.
inline F32x16 high_halves(F32x16 words) {
    for (float& l : words.lane) {
        uint32_t bits;
        __builtin_memcpy(&bits, &l, 4);
        bits &= 0xffff0000u;
        __builtin_memcpy(&l, &bits, 4);
    }
    return words;
}
inline F32x16 low_halves(F32x16 words) {
    for (float& l : words.lane) {
        uint32_t bits;
        __builtin_memcpy(&bits, &l, 4);
        bits <<= 16;
        __builtin_memcpy(&l, &bits, 4);
    }
    return words;
}
// Two vectors of integers in [-127, 127] as 32 bytes, one after the other or by turns -> their sum.
inline int32_t store_codes(F32x16 a, F32x16 b, bool by_turns, float* to) {
    int8_t codes[32];
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) {
        const int8_t first = static_cast<int8_t>(a.lane[i]),
                     second = static_cast<int8_t>(b.lane[i]);
        codes[by_turns ? 2 * i : i] = first;
        codes[by_turns ? 2 * i + 1 : 16 + i] = second;
        sum += first + second;
    }
    __builtin_memcpy(to, codes, sizeof codes);
    return sum;
}

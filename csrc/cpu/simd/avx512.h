// Sixteen float lanes in one zmm register. Needs AVX-512 F and BW (Skylake-X, Zen 4 and later).
// Included inside the ISA's namespace, under its target pragma; semantics are those of scalar.h.

struct F32x16 {
    __m512 v;

    static F32x16 zero() { return {_mm512_setzero_ps()}; }
    static F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
    static F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static F32x16 load_first(const float* p, int n) {
        return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)};
    }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    void store_first(float* p, int n) const {
        _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
    }
};

inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 pow2_of_shifted(F32x16 t) {
    const __m512i n = _mm512_add_epi32(_mm512_castps_si512(t.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(n, 23))};
}
inline F32x16 low_bf16(const uint32_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_load_si512(p), 16))};
}
inline F32x16 high_bf16(const uint32_t* p) {
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_load_si512(p), mask))};
}
inline F32x16 nearest(F32x16 x) {
    return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F32x16 times_pow2(F32x16 p, F32x16 n) { return {_mm512_scalef_ps(p.v, n.v)}; }

#if !defined(SMOLVLA_ROUND_BY_INSTRUCTION)
inline F32x16 round_bf16(F32x16 x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    const __mmask16 tiny = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
    const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
    __m512i all = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x00400000));
    all = _mm512_mask_and_epi32(all, tiny, bits, sign);
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_and_si512(all, mask))};
}
inline void store_words(F32x16 x, float* p) {
    // As 64 bits: odd lane << 32 | even lane.
    const __m512i pair = _mm512_castps_si512(round_bf16(x).v);
    const __m512i word = _mm512_or_si512(pair, _mm512_srli_epi64(pair, 48));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi64_epi32(word));
}
#else  // AVX-512 BF16 has the same rounding in one instruction
inline F32x16 round_bf16(F32x16 x) {
    const __m256i half = (__m256i)_mm512_cvtneps_pbh(x.v);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline void store_words(F32x16 x, float* p) {
    const __m256i half = (__m256i)_mm512_cvtneps_pbh(x.v);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_rol_epi32(half, 16));
}
#endif

inline F32x16 high_halves(F32x16 words) {
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words.v), mask))};
}
inline F32x16 low_halves(F32x16 words) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(words.v), 16))};
}
inline int32_t store_codes(F32x16 a, F32x16 b, bool by_turns, float* to) {
    const __m512i first = _mm512_cvtps_epi32(a.v), second = _mm512_cvtps_epi32(b.v);
    __m256i codes;
    if (by_turns) {
        const __m512i low = _mm512_and_si512(first, _mm512_set1_epi32(0xff));
        codes = _mm512_cvtepi32_epi16(_mm512_or_si512(low, _mm512_slli_epi32(second, 8)));
    } else {
        codes = _mm256_set_m128i(_mm512_cvtepi32_epi8(second), _mm512_cvtepi32_epi8(first));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), codes);
    return _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
}

// Sixteen float lanes in two ymm registers. Needs AVX2 and FMA (Haswell, Zen and later). Included
// inside the ISA's namespace, under its target pragma; semantics are those of scalar.h.
//
// A tail of n lanes goes through vmaskmov, which touches no memory behind the lanes it takes. Whole
// vectors avoid it: on AMD a masked store is many micro-operations.

// Eight lanes from kLanes + 8 - n are n times "take", then "leave".
alignas(64) static const int32_t kLanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

inline __m256i first_lanes(int n) {
    n = n < 0 ? 0 : n > 8 ? 8 : n;
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLanes + 8 - n));
}

struct F32x16 {
    __m256 low, high;

    static F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static F32x16 broadcast(float x) {
        const __m256 v = _mm256_set1_ps(x);
        return {v, v};
    }
    static F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static F32x16 load_first(const float* p, int n) {
        if (n == 16) return load(p);
        if (n <= 8) return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_setzero_ps()};
        return {_mm256_loadu_ps(p), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
    }
    void store(float* p) const {
        _mm256_storeu_ps(p, low);
        _mm256_storeu_ps(p + 8, high);
    }
    void store_first(float* p, int n) const {
        if (n == 16) return store(p);
        if (n <= 8) return _mm256_maskstore_ps(p, first_lanes(n), low);
        _mm256_storeu_ps(p, low);
        _mm256_maskstore_ps(p + 8, first_lanes(n - 8), high);
    }
};

inline F32x16 operator+(F32x16 a, F32x16 b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline F32x16 max(F32x16 a, F32x16 b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline F32x16 min(F32x16 a, F32x16 b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline __m256 pow2_of_shifted(__m256 t) {
    const __m256i n = _mm256_add_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}
inline F32x16 pow2_of_shifted(F32x16 t) {
    return {pow2_of_shifted(t.low), pow2_of_shifted(t.high)};
}
inline F32x16 low_bf16(const uint32_t* p) {
    const __m256i* words = reinterpret_cast<const __m256i*>(p);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_load_si256(words), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_load_si256(words + 1), 16))};
}
inline F32x16 high_bf16(const uint32_t* p) {
    const __m256i* words = reinterpret_cast<const __m256i*>(p);
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_load_si256(words), mask)),
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_load_si256(words + 1), mask))};
}
inline F32x16 nearest(F32x16 x) {
    constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.low, kMode), _mm256_round_ps(x.high, kMode)};
}
inline F32x16 times_pow2(F32x16 p, F32x16 n) {
    return p * pow2_of_shifted(n + F32x16::broadcast(12582912.0f));
}
inline __m256 round_bf16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const __m256i zero = _mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0x80000000u)));
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    const __m256i exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f800000));
    const __m256i tiny = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
    __m256i all = _mm256_blendv_epi8(up, quiet, _mm256_castps_si256(nan));
    all = _mm256_blendv_epi8(all, zero, tiny);
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm256_castsi256_ps(_mm256_and_si256(all, mask));
}
inline F32x16 round_bf16(F32x16 x) { return {round_bf16(x.low), round_bf16(x.high)}; }
// In the low half of every 64 bits, the word of two rounded lanes.
inline __m256 pair_words(__m256 x) {
    const __m256i pair = _mm256_castps_si256(round_bf16(x));
    return _mm256_castsi256_ps(_mm256_or_si256(pair, _mm256_srli_epi64(pair, 48)));
}
inline void store_words(F32x16 x, float* p) {
    const __m256 mixed = _mm256_shuffle_ps(pair_words(x.low), pair_words(x.high), 0x88);
    _mm256_storeu_pd(reinterpret_cast<double*>(p),
                     _mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8));
}

inline F32x16 high_halves(F32x16 words) {
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000u)));
    return {_mm256_and_ps(words.low, mask), _mm256_and_ps(words.high, mask)};
}
inline __m256 low_halves(__m256 words) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(words), 16));
}
inline F32x16 low_halves(F32x16 words) { return {low_halves(words.low), low_halves(words.high)}; }
// Sixteen integers as bytes in order.
inline __m128i narrow(__m256i low, __m256i high) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
inline int32_t store_codes(F32x16 a, F32x16 b, bool by_turns, float* to) {
    const __m256i a0 = _mm256_cvtps_epi32(a.low), a1 = _mm256_cvtps_epi32(a.high);
    const __m256i b0 = _mm256_cvtps_epi32(b.low), b1 = _mm256_cvtps_epi32(b.high);
    const __m128i first = narrow(a0, a1), second = narrow(b0, b1);
    __m128i* out = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(out, by_turns ? _mm_unpacklo_epi8(first, second) : first);
    _mm_storeu_si128(out + 1, by_turns ? _mm_unpackhi_epi8(first, second) : second);
    const __m256i four = _mm256_add_epi32(_mm256_add_epi32(a0, a1), _mm256_add_epi32(b0, b1));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

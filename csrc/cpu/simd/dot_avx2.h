// Integer products in AVX2. vpmaddubsw multiplies unsigned with signed bytes and adds pairs with
// saturation at 2^15 - 1; the weight's magnitude is the unsigned one, and its sign goes to the
// activation, so that a pair is at most 2 * 127 * 127 = 32,258: saturation is out of reach, because
// neither side holds a -128. Included after simd/avx2.h, inside the ISA's namespace; semantics are
// those of dot_scalar.h.

struct Dots {
    __m256i low, high;

    static Dots broadcast(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
    F32x16 to_float() const { return {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)}; }
};

using RowWord = __m256i;
inline RowWord row_word(const float* p) { return _mm256_castps_si256(_mm256_set1_ps(*p)); }

inline __m256i add_to(__m256i w, __m256i a, __m256i sum) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

struct Codes8 {
    struct Vector {
        __m256i low, high;
    };
    static constexpr int kRowBytes = kPanel * 4;
    static constexpr CodeOrder kOrder = {0, 4};
    static Vector load(const char* row, int half) {
        const __m256i* from = reinterpret_cast<const __m256i*>(row + 64 * half);
        return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
    }
    static Dots add_products(Vector w, RowWord a, Dots sum) {
        return {add_to(w.low, a, sum.low), add_to(w.high, a, sum.high)};
    }
};

struct Codes4 : Codes8 {
    static constexpr int kRowBytes = kPanel * 2;
    static __m256i widen(__m256i both, int half) {
        const __m256i codes = half == 0 ? both : _mm256_srli_epi16(both, 4);
        return _mm256_sub_epi8(_mm256_and_si256(codes, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
    }
    static Vector load(const char* row, int half) {
        const __m256i* from = reinterpret_cast<const __m256i*>(row);
        return {widen(_mm256_loadu_si256(from), half), widen(_mm256_loadu_si256(from + 1), half)};
    }
};

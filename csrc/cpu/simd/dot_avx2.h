// Integer products in AVX2. With SMOLVLA_VNNI (AVX-VNNI) vpdpbusd adds four products of unsigned
// and signed bytes to every 32-bit lane; as in dot_avx512_vnni.h the weights are the unsigned ones,
// with an offset. Otherwise vpmaddubsw multiplies unsigned with signed bytes and adds pairs with
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

#if defined(SMOLVLA_VNNI)
constexpr int kOffset8 = 128, kOffset4 = 8;
inline __m256i add_to(__m256i w, __m256i a, __m256i sum) {
    // By hand, as in dot_avx512_vnni.h. {vex}: without it the assembler takes AVX-512's encoding.
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(a));
    return sum;
}
#else
constexpr int kOffset8 = 0, kOffset4 = 0;
inline __m256i add_to(__m256i w, __m256i a, __m256i sum) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

struct Codes8 {
    struct Vector {
        __m256i low, high;
    };
    static constexpr int kRowBytes = kPanel * 4;
    static constexpr CodeOrder kOrder = {kOffset8, 4};
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
    static constexpr CodeOrder kOrder = {kOffset4, 4};
    static __m256i widen(__m256i both, int half) {
        const __m256i codes =
            _mm256_and_si256(half == 0 ? both : _mm256_srli_epi16(both, 4), _mm256_set1_epi8(15));
        return kOffset4 != 0 ? codes : _mm256_sub_epi8(codes, _mm256_set1_epi8(8));
    }
    static Vector load(const char* row, int half) {
        const __m256i* from = reinterpret_cast<const __m256i*>(row);
        return {widen(_mm256_loadu_si256(from), half), widen(_mm256_loadu_si256(from + 1), half)};
    }
};

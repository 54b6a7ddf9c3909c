// Integer products in AVX-512 VNNI: vpdpbusd adds four products of unsigned and signed bytes to
// every 32-bit lane. The weights are the unsigned ones, so a code carries an offset, and a sum
// starts at minus the offset times the sum of the row's codes. Included after simd/avx512.h, inside
// the ISA's namespace; semantics are those of dot_scalar.h.

struct Dots {
    __m512i v;

    static Dots broadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }
    F32x16 to_float() const { return {_mm512_cvtepi32_ps(v)}; }
};

using RowWord = __m512i;
inline RowWord row_word(const float* p) { return _mm512_castps_si512(_mm512_set1_ps(*p)); }

struct Codes8 {
    using Vector = __m512i;
    static constexpr int kRowBytes = kPanel * 4;
    static constexpr CodeOrder kOrder = {128, 4};
    static Vector load(const char* row, int half) { return _mm512_loadu_si512(row + 64 * half); }
    static Dots add_products(Vector w, RowWord a, Dots sum) {
        // The intrinsic makes GCC 12 copy and spill sums.
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(w), "v"(a));
        return sum;
    }
};

struct Codes4 : Codes8 {
    static constexpr int kRowBytes = kPanel * 2;
    static constexpr CodeOrder kOrder = {8, 4};
    static Vector load(const char* row, int half) {
        const __m512i both = _mm512_loadu_si512(row);
        return _mm512_and_si512(half == 0 ? both : _mm512_srli_epi16(both, 4),
                                _mm512_set1_epi8(15));
    }
};

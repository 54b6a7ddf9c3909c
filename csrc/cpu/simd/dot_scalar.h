// Integer products in plain C++: the reference that every other ISA must equal. A word holds four
// activations in int8; a row of a panel holds four codes of each of 32 columns.
//
// Codes8: byte 4 c + i of the row is the code of column c at k = i, plus the ISA's kOrder.offset.
// Codes4: byte 4 c + i holds column c in its low half and column c + 16 in its high half, each plus
// 8 on every ISA.

struct Dots {  // the sums of sixteen columns
    int32_t lane[16];

    static Dots broadcast(int32_t x) {
        Dots d;
        for (int32_t& l : d.lane) l = x;
        return d;
    }
    F32x16 to_float() const {
        F32x16 r;
        for (int i = 0; i < 16; ++i) r.lane[i] = static_cast<float>(lane[i]);
        return r;
    }
};

using RowWord = const int8_t*;
inline RowWord row_word(const float* p) { return reinterpret_cast<const int8_t*>(p); }

struct Codes8 {
    static constexpr int kRowBytes = kPanel * 4;
    static constexpr CodeOrder kOrder = {0, 4};
    struct Vector {
        int8_t byte[64];
    };
    static Vector load(const char* row, int half) {
        Vector v;
        __builtin_memcpy(v.byte, row + 64 * half, 64);
        return v;
    }
    static Dots add_products(const Vector& w, RowWord a, Dots sum) {
        for (int i = 0; i < 64; ++i) sum.lane[i / 4] += w.byte[i] * a[i % 4];
        return sum;
    }
};

struct Codes4 : Codes8 {
    static constexpr int kRowBytes = kPanel * 2;
    static Vector load(const char* row, int half) {
        Vector v;
        for (int i = 0; i < 64; ++i)
            v.byte[i] = static_cast<int8_t>((static_cast<uint8_t>(row[i]) >> (4 * half) & 15) - 8);
        return v;
    }
};

// The exponential, what is made of it, and the epilogue that a tile of a linear layer goes through.

// exp(x) to about 1 ulp: 2^n * p(r), r = x - n ln 2 in two parts, p of degree 7 on |r| <= ln 2 / 2.
// Clamped to [-87.3, 88.3], where the result stays a normal number. x is the second operand of min
// and max, so that a NaN stays one: clamped away, it would turn into finite, wrong actions.
inline F32x16 exp(F32x16 x) {
    const F32x16 shift = F32x16::broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to integer
    x = min(F32x16::broadcast(88.3f), max(F32x16::broadcast(-87.3f), x));
    const F32x16 t = fma(x, F32x16::broadcast(1.44269504089f), shift);
    const F32x16 n = t - shift;
    F32x16 r = fma(n, F32x16::broadcast(-0.693359375f), x);
    r = fma(n, F32x16::broadcast(2.12194440e-4f), r);
    F32x16 p = F32x16::broadcast(1.9841270e-4f);
    p = fma(p, r, F32x16::broadcast(1.3888889e-3f));
    p = fma(p, r, F32x16::broadcast(8.3333333e-3f));
    p = fma(p, r, F32x16::broadcast(4.1666668e-2f));
    p = fma(p, r, F32x16::broadcast(1.6666667e-1f));
    p = fma(p, r, F32x16::broadcast(0.5f));
    p = fma(p, r, F32x16::broadcast(1.0f));
    p = fma(p, r, F32x16::broadcast(1.0f));
    return p * pow2_of_shifted(t);
}

// 2^x to 2^-17 by a polynomial of degree 4, for results that are rounded to bfloat16 (2^-9).
// x is clamped to at least -125, so that the result is a normal number, and is below 127; NaN stays
// NaN, as above.
inline F32x16 exp2_coarse(F32x16 x) {
    x = max(F32x16::broadcast(-125.0f), x);
    const F32x16 n = nearest(x);
    const F32x16 r = x - n;
    F32x16 p = F32x16::broadcast(0.00957010128f);
    p = fma(p, r, F32x16::broadcast(0.0559178591f));
    p = fma(p, r, F32x16::broadcast(0.240247443f));
    p = fma(p, r, F32x16::broadcast(0.693121791f));
    p = fma(p, r, F32x16::broadcast(0.999999285f));
    return times_pow2(p, n);
}

// x * sigmoid(z)
template <bool COARSE>
inline F32x16 times_sigmoid(F32x16 x, F32x16 z) {
    const F32x16 one = F32x16::broadcast(1.0f);
    if (COARSE) {
        const F32x16 u = z * F32x16::broadcast(-1.44269504089f);
        return x / (one + exp2_coarse(min(F32x16::broadcast(126.0f), u)));
    }
    return x / (one + exp(F32x16::zero() - z));
}
template <bool COARSE>
inline F32x16 silu(F32x16 x) {
    return times_sigmoid<COARSE>(x, x);
}

// gelu_pytorch_tanh: 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
template <bool COARSE>
inline F32x16 gelu_tanh(F32x16 x) {
    const F32x16 inner = fma(x * x * x, F32x16::broadcast(0.044715f), x);
    return times_sigmoid<COARSE>(x, inner * F32x16::broadcast(1.5957691216f));
}

// Writes `width` columns at column c (even) of a row. An odd last column is paired with zero.
inline void put(F32x16 v, float* row, int c, int width, Storage storage) {
    if (storage == Storage::f32) return v.store_first(row + c, width);
    if (storage == Storage::rounded) return round_bf16(v).store_first(row + c, width);
    if (width == 16) return store_words(v, row + c / 2);
    float lane[16], words[8];
    v.store(lane);
    store_words(F32x16::load_first(lane, width), words);
    for (int i = 0; i < (width + 1) / 2; ++i) row[c / 2 + i] = words[i];
}

template <bool COARSE>
inline void epilogue(const Epilogue& e, const float* tile, int rows, int columns, float* y,
                     ptrdiff_t ldy) {
    const bool gate = e.activation == TileActivation::silu_gate;
    const F32x16 scale = F32x16::broadcast(e.scale);
    for (int c = 0; c < columns; c += 16) {
        const int width = columns - c < 16 ? columns - c : 16;
        const F32x16 bias = e.bias ? F32x16::load(e.bias + c) : F32x16::zero();
        const F32x16 up_bias = e.bias && gate ? F32x16::load(e.bias + 16) : F32x16::zero();
        for (int r = 0; r < rows; ++r) {
            const float* from = tile + r * kPanel + c;
            const F32x16 factor =
                F32x16::broadcast(e.row_scale ? e.row_scale[r * e.row_scale_ld] : 1.0f);
            F32x16 v =
                e.row_scale ? fma(F32x16::load(from), factor, bias) : F32x16::load(from) + bias;
            switch (e.activation) {
                case TileActivation::none: break;
                case TileActivation::gelu_tanh: v = gelu_tanh<COARSE>(v); break;
                case TileActivation::silu: v = silu<COARSE>(v); break;
                case TileActivation::silu_gate:
                    v = silu<COARSE>(v) * (e.row_scale
                                               ? fma(F32x16::load(from + 16), factor, up_bias)
                                               : F32x16::load(from + 16) + up_bias);
                    break;
            }
            v = v * scale;
            if (e.column_scale) v = v * F32x16::load(e.column_scale + c);
            if (e.residual) v = F32x16::load_first(e.residual + r * e.residual_ld + c, width) + v;
            put(v, y + r * ldy, c, width, e.storage);
        }
    }
}
inline void epilogue_tile(const Epilogue& e, const float* tile, int rows, int columns, float* y,
                          ptrdiff_t ldy) {
    const bool coarse = e.storage != Storage::f32;
    (coarse ? epilogue<true> : epilogue<false>)(e, tile, rows, columns, y, ldy);
}

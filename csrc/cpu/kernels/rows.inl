// Scaling and rotating rows.

inline void scale_rows(const float* x, ptrdiff_t ldx, int rows, int columns, const float* factor,
                       float* y, ptrdiff_t ldy, Storage storage) {
    for (int r = 0; r < rows; ++r, x += ldx, y += ldy) {
        const F32x16 f = F32x16::broadcast(factor ? factor[r] : 1.0f);
        for (int c = 0; c < columns; c += 16) {
            const int width = columns - c < 16 ? columns - c : 16;
            put(F32x16::load_first(x + c, width) * f, y, c, width, storage);
        }
    }
}

inline void rope(float* x, int heads, int head_dim, const float* cosine, const float* sine) {
    const int half = head_dim / 2;
    for (int h = 0; h < heads; ++h, x += head_dim)
        for (int i = 0; i < half; i += 16) {
            const int width = half - i < 16 ? half - i : 16;
            const F32x16 a = F32x16::load_first(x + i, width);
            const F32x16 b = F32x16::load_first(x + half + i, width);
            const F32x16 c = F32x16::load_first(cosine + i, width);
            const F32x16 s = F32x16::load_first(sine + i, width);
            (a * c - b * s).store_first(x + i, width);
            (b * c + a * s).store_first(x + half + i, width);
        }
}

// Softmax over rows of scores.

// The largest of x[0..count): in four chains, because a max depends on the one before it.
inline float largest(const float* x, int count) {
    const int whole = count / 16 * 16;
    F32x16 most[4];
    for (F32x16& m : most) m = F32x16::broadcast(x[0]);
    int c = 0;
    for (; c + 64 <= whole; c += 64)
        for (int i = 0; i < 4; ++i) most[i] = max(most[i], F32x16::load(x + c + 16 * i));
    for (; c < whole; c += 16) most[0] = max(most[0], F32x16::load(x + c));
    float top = lane_max(max(max(most[0], most[1]), max(most[2], most[3])));
    for (; c < count; ++c) top = top > x[c] ? top : x[c];
    return top;
}

inline void softmax(float* scores, ptrdiff_t ld, int rows, const int* lengths, int padded,
                    float scale, float* inverse_sum) {
    const F32x16 factor = F32x16::broadcast(scale);
    for (int r = 0; r < rows; ++r, scores += ld) {
        const int length = lengths[r];
        const int whole = length / 16 * 16, rest = length - whole;
        const float top = largest(scores, length);
        const F32x16 origin = F32x16::broadcast(top);
        F32x16 sum = F32x16::zero();
        for (int c = 0; c < whole; c += 16) {
            const F32x16 p = exp((F32x16::load(scores + c) - origin) * factor);
            p.store(scores + c);
            sum = sum + p;
        }
        if (rest > 0) {
            float lane[16];
            exp((F32x16::load_first(scores + whole, rest) - origin) * factor).store(lane);
            const F32x16 p = F32x16::load_first(lane, rest);
            p.store(scores + whole);
            sum = sum + p;
        }
        for (int c = whole + (rest > 0 ? 16 : 0); c < padded; c += 16)
            F32x16::zero().store(scores + c);
        inverse_sum[r] = 1.0f / lane_sum(sum);
    }
}

inline void softmax_bf16(float* scores, ptrdiff_t ld, int rows, const int* lengths, int padded,
                         float scale, float* inverse_sum, Storage storage) {
    const F32x16 factor = F32x16::broadcast(scale * 1.44269504089f);
    for (int r = 0; r < rows; ++r, scores += ld) {
        const int length = lengths[r];
        const int whole = length / 16 * 16, rest = length - whole;
        const float top = largest(scores, length);
        const F32x16 origin = F32x16::broadcast(-top) * factor;
        F32x16 sum = F32x16::zero();
        // In place: the words of column c never reach the scores of column c + 16.
        for (int c = 0; c < whole; c += 16) {
            const F32x16 p = exp2_coarse(fma(F32x16::load(scores + c), factor, origin));
            sum = sum + p;
            put(p, scores, c, 16, storage);
        }
        if (rest > 0) {
            float lane[16];
            exp2_coarse(fma(F32x16::load_first(scores + whole, rest), factor, origin)).store(lane);
            const F32x16 p = F32x16::load_first(lane, rest);
            sum = sum + p;
            put(p, scores, whole, 16, storage);
        }
        for (int c = whole + (rest > 0 ? 16 : 0); c < padded; c += 16)
            put(F32x16::zero(), scores, c, 16, storage);
        inverse_sum[r] = 1.0f / lane_sum(sum);
    }
}

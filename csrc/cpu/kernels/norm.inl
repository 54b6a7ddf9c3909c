// Sums over the lanes of a row, and the two norms.

// Sums the lanes as a fixed binary tree.
inline float lane_sum(F32x16 v) {
    float lane[16];
    v.store(lane);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
}

inline float lane_max(F32x16 v) {
    float lane[16];
    v.store(lane);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i)
            lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}

inline void layer_norm(const float* x, ptrdiff_t ldx, int rows, int columns, const float* weight,
                       const float* bias, float eps, float* y, ptrdiff_t ldy, Storage storage) {
    for (int r = 0; r < rows; ++r, x += ldx, y += ldy) {
        F32x16 sum = F32x16::zero();
        for (int c = 0; c < columns; c += 16)
            sum = sum + F32x16::load_first(x + c, columns - c < 16 ? columns - c : 16);
        const F32x16 mean = F32x16::broadcast(lane_sum(sum) / static_cast<float>(columns));
        F32x16 squares = F32x16::zero();
        for (int c = 0; c < columns; c += 16) {
            const int width = columns - c < 16 ? columns - c : 16;
            F32x16 d = F32x16::load_first(x + c, width) - mean;
            if (width < 16) {  // the missing lanes hold -mean, not 0
                float lane[16];
                d.store(lane);
                d = F32x16::load_first(lane, width);
            }
            squares = fma(d, d, squares);
        }
        const float variance = lane_sum(squares) / static_cast<float>(columns);
        const F32x16 factor = F32x16::broadcast(1.0f / __builtin_sqrtf(variance + eps));
        for (int c = 0; c < columns; c += 16) {
            const int width = columns - c < 16 ? columns - c : 16;
            const F32x16 d = F32x16::load_first(x + c, width) - mean;
            put(fma(d * factor, F32x16::load_first(weight + c, width),
                    F32x16::load_first(bias + c, width)),
                y, c, width, storage);
        }
    }
}

inline void rms_norm(const float* x, ptrdiff_t ldx, int rows, int columns, const float* weight,
                     const float*, float eps, float* y, ptrdiff_t ldy, Storage storage) {
    for (int r = 0; r < rows; ++r, x += ldx, y += ldy) {
        F32x16 squares = F32x16::zero();
        for (int c = 0; c < columns; c += 16) {
            const F32x16 v = F32x16::load_first(x + c, columns - c < 16 ? columns - c : 16);
            squares = fma(v, v, squares);
        }
        const float mean = lane_sum(squares) / static_cast<float>(columns);
        const F32x16 factor = F32x16::broadcast(1.0f / __builtin_sqrtf(mean + eps));
        for (int c = 0; c < columns; c += 16) {
            const int width = columns - c < 16 ? columns - c : 16;
            put(F32x16::load_first(weight + c, width) * (F32x16::load_first(x + c, width) * factor),
                y, c, width, storage);
        }
    }
}

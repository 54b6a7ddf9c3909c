// The matrix product of a tile of rows with a panel of 32 weight columns.
//
// Roofline of the GEMM tile on AVX-512: 14 x 32 outputs keep 28 accumulators, 2 weight vectors and
// 1 broadcast in 31 of 32 registers; a step of k costs 28 fma on two pipes (14 cycles) and 16 loads
// on two ports (8 cycles), so it is bound by the fma pipes. Measured on Zen 5, one core: 253-275
// GFLOP/s at SmolVLA's shapes against 286 for a register-only fma loop (docs/performance.md).

struct PanelF32 {  // [depth][32] float32
    static constexpr int kRowBytes = kPanel * 4;
    static constexpr int kChain = kDepthBlock;
    static F32x16 load(const char* row, int half) {
        return F32x16::load(reinterpret_cast<const float*>(row) + 16 * half);
    }
    static F32x16 add_product(F32x16 a, F32x16 w, F32x16 sum) { return fma(a, w, sum); }
};

struct PanelBf16 {  // [depth][16] words of two bfloat16; widened here, exactly, while computing
    static constexpr int kRowBytes = kPanel * 2;
    static constexpr int kChain = kDepthBlock;
    static F32x16 load(const char* row, int half) {
        const uint32_t* words = reinterpret_cast<const uint32_t*>(row);
        return half == 0 ? low_bf16(words) : high_bf16(words);
    }
    static F32x16 add_product(F32x16 a, F32x16 w, F32x16 sum) { return fma(a, w, sum); }
};

// VECTORS: how many of a panel's two vectors of 16 columns are summed at once. An ISA with few
// registers takes the halves one after the other; the sums are the same.
template <int ROWS, int VECTORS, class Panel>
void gemm_half(const float* x, ptrdiff_t ldx, const char* row, int depth, int half, float* out,
               ptrdiff_t ldo, const char* ahead) {
    // One base pointer for three rows: base + {0, 1, 2} * ldx is a single addressing mode, whereas
    // one pointer per row would spill and cost a load for every multiply.
    constexpr int kBases = (ROWS + 2) / 3;
    const float* base[kBases];
    for (int g = 0; g < kBases; ++g) base[g] = x + 3 * g * ldx;
    for (int begin = 0; begin < depth; begin += Panel::kChain) {
        const int end = depth - begin < Panel::kChain ? depth : begin + Panel::kChain;
        F32x16 sum[ROWS][VECTORS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) sum[r][v] = F32x16::zero();
        for (int k = begin; k < end; ++k) {
            F32x16 w[VECTORS];
            for (int v = 0; v < VECTORS; ++v) w[v] = Panel::load(row, half + v);
            row += Panel::kRowBytes;
            if (ahead) {
                __builtin_prefetch(ahead, 0, 2);
                if (Panel::kRowBytes * VECTORS > 128) __builtin_prefetch(ahead + 64, 0, 2);
                ahead += Panel::kRowBytes;
            }
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                const F32x16 a = F32x16::broadcast(base[r / 3][(r % 3) * ldx]);
                for (int v = 0; v < VECTORS; ++v)
                    sum[r][v] = Panel::add_product(a, w[v], sum[r][v]);
            }
#pragma GCC unroll 16
            for (int g = 0; g < kBases; ++g) ++base[g];
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) {
                float* to = out + r * ldo + 16 * (half + v);
                if (begin > 0) sum[r][v] = F32x16::load(to) + sum[r][v];
                sum[r][v].store(to);
            }
    }
}

template <int ROWS, int VECTORS, class Panel>
void gemm_tile(const float* x, ptrdiff_t ldx, const void* panel, int depth, float* out,
               ptrdiff_t ldo, const void* next) {
    // Each half fetches its own cache lines of the next panel; a row of bfloat16 is one line.
    const char* ahead = static_cast<const char*>(next);
    for (int half = 0; half < 2; half += VECTORS) {
        gemm_half<ROWS, VECTORS, Panel>(x, ldx, static_cast<const char*>(panel), depth, half, out,
                                        ldo, ahead);
        if (ahead) ahead = Panel::kRowBytes > 64 ? ahead + 64 : nullptr;
    }
}

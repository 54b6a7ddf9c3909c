// All CPU kernels, written once over F32x16. An ISA's translation unit sets its target pragma,
// opens its namespace, includes a simd/ header and then this file (see isa_avx512.cpp).
//
// Numerics, the same for every ISA: a dot product is summed in chains of kDepthBlock fused
// multiply-adds in order of k, and the chains are added in order. A lane is one output, so neither
// the tile height nor the thread count nor the register width can change a result.
//
// Roofline of the GEMM tile on AVX-512: 14 x 32 outputs keep 28 accumulators, 2 weight vectors and
// 1 broadcast in 31 of 32 registers; a step of k costs 28 fma on two pipes (14 cycles) and 16 loads
// on two ports (8 cycles), so it is bound by the fma pipes. Measured on Zen 5, one core: 253-275
// GFLOP/s at SmolVLA's shapes against 286 for a register-only fma loop (docs/performance.md).

// ---- matrix product --------------------------------------------------------------------------

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

// ---- exponential and activations ---------------------------------------------------------------

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

// ---- results -----------------------------------------------------------------------------------

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
            F32x16 v = F32x16::load(tile + r * kPanel + c) + bias;
            switch (e.activation) {
                case TileActivation::none: break;
                case TileActivation::gelu_tanh: v = gelu_tanh<COARSE>(v); break;
                case TileActivation::silu: v = silu<COARSE>(v); break;
                case TileActivation::silu_gate:
                    v = silu<COARSE>(v) * (F32x16::load(tile + r * kPanel + 16) + up_bias);
                    break;
            }
            v = v * scale;
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

// ---- reductions over a row ---------------------------------------------------------------------

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

// ---- rows ------------------------------------------------------------------------------------

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

// ---- the ceiling -------------------------------------------------------------------------------

// Independent products in registers: what the pipes give with no memory at all.
template <class Panel, int CHAINS>
inline double product_chain(long iterations) {
    // Every lane starts differently: equal ones would be computed once. Every loop over the chains
    // is unrolled: they would be stored in each iteration otherwise.
    float start[16 * CHAINS];
    for (int i = 0; i < 16 * CHAINS; ++i) start[i] = static_cast<float>(i);
    F32x16 chain[CHAINS];
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; ++i) chain[i] = F32x16::load(start + 16 * i);
    F32x16 a = F32x16::broadcast(0.999f), b = F32x16::broadcast(0.001f);
    for (long n = 0; n < iterations; ++n) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; ++i) chain[i] = Panel::add_product(a, b, chain[i]);
    }
    F32x16 sum = F32x16::zero();
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; ++i) sum = sum + chain[i];
    const float total = lane_sum(sum);
    // Uses the result, so that the loop cannot be dropped.
    const double flops_of_product = 2.0 * 16 * (kDepthBlock / Panel::kChain);
    return total == total ? flops_of_product * CHAINS * static_cast<double>(iterations) : 0.0;
}

// ---- tables ------------------------------------------------------------------------------------

template <int ROWS, int MAX_ROWS, int VECTORS, class Panel>
constexpr GemmTile gemm_tile_up_to() {
    if constexpr (ROWS <= MAX_ROWS)
        return gemm_tile<ROWS, VECTORS, Panel>;
    else
        return nullptr;
}

template <class Panel, int MAX, int VECTORS, int... ROWS>
constexpr GemmKernels gemm_table(std::integer_sequence<int, ROWS...>) {
    return {MAX, {nullptr, gemm_tile_up_to<ROWS + 1, MAX, VECTORS, Panel>()...}};
}
// Tiles of 1 to MAX rows, VECTORS * 16 columns at a time.
template <class Panel, int MAX, int VECTORS>
constexpr GemmKernels gemm_table() {
    return gemm_table<Panel, MAX, VECTORS>(std::make_integer_sequence<int, kMaxTileRows>());
}

// The row of an ISA. CHAINS: as many sums as fit the registers beside two operands, to measure the
// ceiling.
template <int CHAINS>
constexpr Kernels every_kernel_but_gemm(const char* isa) {
    Kernels k{};
    k.isa = isa;
    k.epilogue = epilogue_tile;
    k.layer_norm = layer_norm;
    k.rms_norm = rms_norm;
    k.softmax = softmax;
    k.softmax_bf16 = softmax_bf16;
    k.scale_rows = scale_rows;
    k.rope = rope;
    k.fma_chain = product_chain<PanelF32, CHAINS>;
    return k;
}
template <int CHAINS>
constexpr Kernels every_kernel(const char* isa, const GemmKernels& f32, const GemmKernels& bf16) {
    Kernels k = every_kernel_but_gemm<CHAINS>(isa);
    k.gemm_f32 = &f32;
    k.gemm_bf16 = &bf16;
    return k;
}

// An ISA's row of the dispatch table, and the loop that measures its ceiling.

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
    k.quantize_rows = quantize_rows;
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
constexpr Kernels with_codes(Kernels k, const DotKernels& dot8, const DotKernels& dot4) {
    k.dot8 = &dot8;
    k.dot4 = &dot4;
    return k;
}

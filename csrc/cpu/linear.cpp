#include "cpu/linear.h"

#include <algorithm>

namespace smolvla::cpu {
namespace {

// Activations of one row block stay in half of a 1 MiB L2 while the weight panels stream past.
constexpr int kBlockWords = 128 << 10;
constexpr int kItemsPerThread = 32;  // the last item of a pass idles the others by 1/64 at most

TileActivation tile_activation(Activation a, bool gated) {
    if (gated) return TileActivation::silu_gate;
    switch (a) {
        case Activation::gelu_tanh: return TileActivation::gelu_tanh;
        case Activation::silu: return TileActivation::silu;
        default: return TileActivation::none;
    }
}

// The tiles of a weight: products of floats or of codes, one of the two.
struct Tiles {
    const GemmKernels* floats = nullptr;
    const DotKernels* codes = nullptr;
    int most() const { return codes ? codes->max_rows : floats->max_rows; }
};
Tiles tiles_of(const Kernels& kernels, Layout layout) {
    switch (layout) {
        case Layout::codes8: return {nullptr, kernels.dot8};
        case Layout::codes4: return {nullptr, kernels.dot4};
        case Layout::bf16_words: return {kernels.gemm_words, nullptr};
        case Layout::bf16_columns: return {kernels.gemm_bf16, nullptr};
        default: return {kernels.gemm_f32, nullptr};
    }
}

int words_of_row(const PackedLinear& w) {
    return w.codes() ? words_of(w.in, Storage::i8) : w.depth();
}

}  // namespace

int block_rows(const Kernels& kernels, const PackedLinear& w) {
    const int most = tiles_of(kernels, w.layout).most();
    return std::max(most, kBlockWords / words_of_row(w) / most * most);
}

Mat convert(const Kernels& kernels, Mat x, Storage storage, float* scratch) {
    const Mat to{scratch, x.rows, x.cols, operand_ld(x.cols), storage};
    if (x.storage != Storage::bf16)
        kernels.scale_rows(x.data, x.ld, x.rows, x.cols, nullptr, to.data, to.ld, storage);
    else
        for (int r = 0; r < x.rows; ++r)
            for (int c = 0; c < x.cols; ++c) to.row(r)[c] = x.value(r, c);
    return to;
}

Mat quantize(const Workplace& place, Mat x, float* room) {
    const Mat to{room, x.rows, x.cols, coded_ld(x.cols), Storage::i8};
    each_row(place.workers, x.rows, [&](int r, int) {
        place.kernels.quantize_rows(x.row(r), x.ld, 1, x.cols, x.storage, to.row(r), to.ld);
    });
    return to;
}

void run_linear(const Workplace& place, Mat x, const PackedLinear& w, Mat y, const LinearOptions& o,
                Storage operand) {
    const Tiles tiles = tiles_of(place.kernels, w.layout);
    const int most = tiles.most(), depth = w.depth();
    const int blocks = ceil_div(x.rows, block_rows(place.kernels, w));
    const int groups =
        std::min(w.panels, ceil_div(kItemsPerThread * place.workers.size(), std::max(blocks, 1)));
    const float* bias = o.bias ? o.bias : w.bias;
    if (o.bias_row) bias += *o.bias_row * o.bias_ld;
    const int step = w.gated ? kPanel / 2 : kPanel;  // result columns per panel
    Epilogue e{nullptr,  nullptr, o.residual.ld, o.scale, tile_activation(o.activation, w.gated),
               y.storage};
    const bool plain = !tiles.codes && !bias && !o.residual.data && o.scale == 1.0f &&
                       !o.column_scale && e.activation == TileActivation::none &&
                       y.storage == Storage::f32;

    place.workers.run(blocks * groups, [&](int item, int thread) {
        alignas(64) float tile[kMaxTileRows * kPanel];
        const int first = part_start(x.rows, blocks, item / groups);
        const int rows = part_start(x.rows, blocks, item / groups + 1) - first;
        const int row_tiles = ceil_div(rows, most);
        const int last_panel = part_start(w.panels, groups, item % groups + 1);
        Mat in = x.below(first, rows);
        if (operand != x.storage)
            in = convert(place.kernels, in, operand, place.scratch[size_t(thread)]);
        for (int p = part_start(w.panels, groups, item % groups); p < last_panel; ++p) {
            const int columns = std::min(step, w.out - p * step);
            const bool direct = plain && columns == kPanel;
            Epilogue here = e;
            if (bias) here.bias = bias + p * kPanel;
            if (o.column_scale) here.column_scale = o.column_scale + p * kPanel;
            for (int t = 0; t < row_tiles; ++t) {
                const int r = part_start(rows, row_tiles, t);
                const int height = part_start(rows, row_tiles, t + 1) - r;
                const void* next =
                    t == row_tiles - 1 && p + 1 < last_panel ? w.panel(p + 1) : nullptr;
                float* to = y.at(first + r, p * step);
                if (tiles.codes) {
                    tiles.codes->tile[height](in.row(r), in.ld, w.code_panel(p), tile, kPanel,
                                              next);
                    here.row_scale = in.row(r) + scale_at(depth);
                    here.row_scale_ld = in.ld;
                } else {
                    tiles.floats->tile[height](in.row(r), in.ld, w.panel(p), depth,
                                               direct ? to : tile, direct ? y.ld : kPanel, next);
                }
                if (direct) continue;
                if (o.residual.data) here.residual = o.residual.row(first + r) + p * step;
                place.kernels.epilogue(here, tile, height, columns, to, y.ld);
            }
        }
    });
}

}  // namespace smolvla::cpu

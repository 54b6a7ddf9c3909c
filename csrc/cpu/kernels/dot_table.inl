// The integer products of an ISA, from its dot_tile: tiles of 1 to MAX rows, VECTORS * 16 columns
// at a time.
template <int ROWS, int MAX_ROWS, int VECTORS, class Weights>
constexpr DotTile dot_tile_up_to() {
    if constexpr (ROWS <= MAX_ROWS)
        return dot_tile<ROWS, VECTORS, Weights>;
    else
        return nullptr;
}
template <class Weights, int MAX, int VECTORS, int... ROWS>
constexpr DotKernels dot_table(std::integer_sequence<int, ROWS...>) {
    return {MAX, Weights::kOrder, {nullptr, dot_tile_up_to<ROWS + 1, MAX, VECTORS, Weights>()...}};
}
template <class Weights, int MAX, int VECTORS>
constexpr DotKernels dot_table() {
    return dot_table<Weights, MAX, VECTORS>(std::make_integer_sequence<int, kMaxTileRows>());
}

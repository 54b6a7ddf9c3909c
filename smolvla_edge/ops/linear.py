"""Linear layers: float weights as plain arrays, integer weights as `PackedWeight`."""

from __future__ import annotations

from typing import Any

from smolvla_edge.errors import InputError
from smolvla_edge.ops.arrays import Array, Stream, call
from smolvla_edge.ops.rows import QuantizedRows
from smolvla_edge.ops.weights import PackedWeight


def linear(
    x: Array,
    w: Array,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    out: Array | None = None,
    stream: Stream = None,
    *,
    gated: bool = False,
    scale: float = 1.0,
    column_scale: Array | None = None,
    bias_row: Array | None = None,
) -> Array:
    """y = activation(x Wᵀ + bias) · scale · column_scale + residual, [rows, out].

    x [rows, in] and w [out, in]: both bfloat16 (tensor cores, float32 sums; rows at multiples of 16
    bytes, `in` a multiple of 8), or x float32 and w float32 or bfloat16 without gaps (float32
    arithmetic). bias float32 [out], or a table [any, out] of which row `bias_row` is added, an
    int32 in GPU memory; activation None, "silu" (x / (1 + e⁻ˣ)) or "gelu_tanh"
    (x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2); column_scale float32 [out]; residual float32
    [rows, out], which may be `out` itself. out float32 or bfloat16; a new one has x's dtype.

    gated (SwiGLU): y = silu(x Gᵀ + bias_g) · (x Uᵀ + bias_u) · scale + residual, with
    w = pack_gated(G, U) and bias = pack_gated(bias_g, bias_u); then activation and column_scale are
    None. Raises as the module says.
    """
    terms = _terms(bias, activation, residual, scale, column_scale, bias_row)
    return call("linear", x, stream, x=x, w=w, gated=bool(gated), terms=terms, out=out)


def linear_w4a16(
    x: Array,
    w: PackedWeight,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    out: Array | None = None,
    stream: Stream = None,
    *,
    scale: float = 1.0,
    column_scale: Array | None = None,
    bias_row: Array | None = None,
) -> Array:
    """`linear` with 4-bit weights: x bfloat16 [rows, in], its rows at multiples of 16 bytes.

    Products of codes and x are exact and summed in float32 for each group, and each group's sum is
    multiplied by its scale in float32: no weight is ever rounded. w: of pack_w4; one that is gated
    gives silu(x Gᵀ) · (x Uᵀ). Everything else is as in `linear`; a new `out` is bfloat16. A bias of
    a gated weight is what pack_gated gives, so that `out` must be a multiple of 8 there.
    """
    terms = _terms(bias, activation, residual, scale, column_scale, bias_row)
    handle = _handle(w, 4, "pack_w4")
    return call("linear_w4a16", x, stream, x=x, w=handle, terms=terms, out=out)


def linear_w8a8(
    x: Array | QuantizedRows,
    w: PackedWeight,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    out: Array | None = None,
    stream: Stream = None,
    *,
    scale: float = 1.0,
    column_scale: Array | None = None,
    bias_row: Array | None = None,
) -> Array:
    """`linear` with int8 weights and rows of int8: sums are exact integers.

    x: what quantize_rows, rms_norm or layer_norm made; or float32 or bfloat16 [rows, in], which is
    rounded as quantize_rows does into memory that x's library makes for the time of the call.
    x Wᵀ[r, o] = (Σ_k xcode[r, k] · wcode[o, k]) · (xscale[r] · wscale[o]). w: of pack_w8; one that
    is gated gives silu(x Gᵀ) · (x Uᵀ). Everything else is as in `linear`; a new `out` has x's
    dtype, of QuantizedRows bfloat16.
    """
    terms = _terms(bias, activation, residual, scale, column_scale, bias_row)
    handle = _handle(w, 8, "pack_w8")
    quantized = isinstance(x, QuantizedRows)
    rows = x
    if isinstance(x, QuantizedRows):
        if x.columns != w.columns:
            raise InputError(f"x: expected rows of {w.columns} integers, got {x.columns}")
        rows = x.data
    return call(
        "linear_w8a8", rows, stream, x=rows, quantized=quantized, w=handle, terms=terms, out=out
    )


def pack_gated(gate: Array, up: Array, out: Array | None = None, stream: Stream = None) -> Array:
    """Gate and up, [rows, in] or [rows] each, as one weight (or bias) of a gated `linear`.

    out[16 i + j] = gate[8 i + j] and out[16 i + 8 + j] = up[8 i + j] for j < 8: [2 rows, in] or
    [2 rows]. float32 or bfloat16 without gaps; rows a multiple of 8. Raises as the module says.
    """
    return call("pack_gated", gate, stream, gate=gate, up=up, out=out)


def _terms(
    bias: Array | None,
    activation: str | None,
    residual: Array | None,
    scale: float,
    column_scale: Array | None,
    bias_row: Array | None,
) -> dict[str, Any]:
    if bias is None and bias_row is not None:
        raise InputError("bias_row: expected None without a bias, got an array")
    return {
        "bias": bias,
        "bias_row": bias_row,
        "activation": activation,
        "residual": residual,
        "scale": scale,
        "column_scale": column_scale,
    }


def _handle(w: PackedWeight, bits: int, maker: str) -> Any:
    if not isinstance(w, PackedWeight) or w.bits != bits:
        came = f"one of {w.bits} bits" if isinstance(w, PackedWeight) else type(w).__name__
        raise InputError(f"w: expected a PackedWeight of {maker}, got {came}")
    return w._handle

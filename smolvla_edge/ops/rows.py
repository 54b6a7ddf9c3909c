"""Operations on rows: norms, rounding to integers, copies, picking, sums, comparisons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smolvla_edge.errors import InputError
from smolvla_edge.ops.arrays import Array, Stream, call, operators


@dataclass(frozen=True)
class QuantizedRows:
    """Rows of int8 codes with a float32 scale each, as linear_w8a8 reads them.

    data: int8 [rows, quantized_row_bytes(columns)] in GPU memory, rows at multiples of 16 bytes;
    x[r, k] is about codes[r, k] · scales[r], the codes in [-127, 127].
    """

    data: Array
    columns: int

    @property
    def codes(self) -> Array:
        """int8 [rows, columns], a view of `data` (torch, CuPy)."""
        return self.data[:, : self.columns]

    @property
    def scales(self) -> Array:
        """float32 [rows], a view of `data` (torch, CuPy)."""
        at = operators().quantized_scale_word(self.columns)
        dtype: Any = "float32"
        if type(self.data).__module__.split(".")[0] == "torch":
            import torch

            dtype = torch.float32
        return self.data.view(dtype)[:, at]


def quantized_row_bytes(columns: int) -> int:
    """Bytes that a row of `columns` integers and its scale take in QuantizedRows."""
    if type(columns) is not int or not 1 <= columns <= 65536:
        raise InputError(f"columns: expected 1 to 65536, got {columns!r}")
    size: int = operators().quantized_row_bytes(columns)
    return size


def quantize_rows(
    x: Array, out: QuantizedRows | None = None, stream: Stream = None
) -> QuantizedRows:
    """Every row to int8: codes = round(x · 127 / max|x|), ties to even, scale = max|x| / 127.

    x float32 or bfloat16 [rows, columns]. A row below 2⁻¹⁰⁰ becomes zero; one with NaN or infinity
    keeps that in its scale (NaN). Raises as the module says.
    """
    data = None if out is None else _data(out, x)
    made = call("quantize_rows", x, stream, x=x, out=data)
    return QuantizedRows(made, int(x.shape[1])) if out is None else out


def rms_norm(
    x: Array,
    weight: Array,
    eps: float = 1e-6,
    out: Array | QuantizedRows | None = None,
    stream: Stream = None,
    *,
    dtype: str = "float32",
) -> Array | QuantizedRows:
    """y[r] = x[r] / √(mean(x[r]²) + eps) · weight, [rows, columns].

    x float32 [rows, columns], weight float32 [columns]. out float32, bfloat16 or QuantizedRows
    (what quantize_rows would make of y); a new one is of `dtype`. Raises as the module says.
    """
    return _norm(x, weight, None, False, eps, dtype, out, stream)


def layer_norm(
    x: Array,
    weight: Array,
    bias: Array,
    eps: float = 1e-6,
    out: Array | QuantizedRows | None = None,
    stream: Stream = None,
    *,
    dtype: str = "float32",
) -> Array | QuantizedRows:
    """y[r] = (x[r] - mean(x[r])) / √(var(x[r]) + eps) · weight + bias, [rows, columns].

    The variance is over all columns. x float32 [rows, columns], weight and bias float32 [columns];
    `out` and `dtype` as in rms_norm. Raises as the module says.
    """
    if bias is None:
        raise InputError("bias: expected float32 [columns] in GPU memory, got None")
    return _norm(x, weight, bias, True, eps, dtype, out, stream)


def copy_rows(
    x: Array,
    scale: float = 1.0,
    out: Array | None = None,
    stream: Stream = None,
    *,
    dtype: str = "bfloat16",
) -> Array:
    """y = x · scale in another dtype, rounded to nearest even: [rows, columns].

    x float32 or bfloat16. out float32 or bfloat16; a new one is of `dtype`. Raises as the module
    says.
    """
    return call("copy_rows", x, stream, x=x, scale=scale, dtype=dtype, out=out)


def pick_rows(x: Array, ids: Array, out: Array | None = None, stream: Stream = None) -> Array:
    """out[i] = x[ids[i]]: [len(ids), columns].

    x and out float32; ids int32 [rows of out] in GPU memory. Raises as the module says.
    """
    return call("pick_rows", x, stream, x=x, ids=ids, out=out)


def put_rows(x: Array, ids: Array, out: Array, stream: Stream = None) -> Array:
    """out[ids[i]] = x[i] in place; other rows of `out` keep what they hold. Returns it.

    x and out float32 of the same columns; ids int32 [rows of x] in GPU memory, each once. Raises as
    the module says.
    """
    call("put_rows", x, stream, x=x, ids=ids, out=out)
    return out


def add_rows(
    x: Array, z: Array, scale: float = 1.0, out: Array | None = None, stream: Stream = None
) -> Array:
    """y = x + z · scale, all float32 [rows, columns]; `out` may be x or z. Raises as the module
    says."""
    return call("add_rows", x, stream, x=x, z=z, scale=scale, out=out)


def compare_rows(
    a: Array,
    b: Array,
    columns: int | None = None,
    out: Array | None = None,
    stream: Stream = None,
) -> Array:
    """Of every row r: out[r] = Σ a b, Σ a², Σ b², Σ (a - b)², max |a - b|: float32 [rows, 5].

    a and b float32 [rows, columns], of which the first `columns` are compared, None for all. Sums
    are made in float64 and in one order, and rounded once; NaN in a row is NaN in the largest
    difference. Raises as the module says.
    """
    return call("compare_rows", a, stream, a=a, b=b, columns=columns, out=out)


def _data(out: QuantizedRows, x: Array) -> Array:
    columns = tuple(getattr(x, "shape", ()))[-1:]
    if not isinstance(out, QuantizedRows) or columns != (out.columns,):
        raise InputError(f"out: expected QuantizedRows of {list(columns)} columns, got {out!r}")
    return out.data


def _norm(
    x: Array,
    weight: Array,
    bias: Array | None,
    center: bool,
    eps: float,
    dtype: str,
    out: Array | QuantizedRows | None,
    stream: Stream,
) -> Array | QuantizedRows:
    quantized = isinstance(out, QuantizedRows)
    data = _data(out, x) if isinstance(out, QuantizedRows) else out
    made = call(
        "norm", x, stream, x=x, weight=weight, bias=bias, center=center, eps=eps, dtype=dtype,
        quantized=quantized, out=data,
    )  # fmt: skip
    return out if quantized else made

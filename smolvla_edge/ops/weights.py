"""Integer weights in GPU memory, from the codes that a bundle stores (codes.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.errors import InputError
from smolvla_edge.ops.arrays import operators


@dataclass(frozen=True)
class PackedWeight:
    """A weight [out, in] as the kernels read it, in memory of its own on one GPU.

    bits: 8 or 4; group_size: inputs under one scale, None for one scale a row; gated: gate and up,
    `out` rows each. The memory lives as long as this object; give it back outside of captures of
    CUDA graphs, and keep it as long as any graph that uses it.
    """

    bits: int
    out: int
    columns: int
    group_size: int | None
    gated: bool
    device: int
    nbytes: int
    _handle: Any = field(repr=False)


def pack_w8(
    codes: NDArray[np.int8], scales: NDArray[np.float32], *, gated: bool = False, device: int = 0
) -> PackedWeight:
    """Codes in [-127, 127], int8 [out, in], and scales float32 [out] to a weight on GPU `device`.

    W[o, k] = codes[o, k] scales[o], in up to 65536. gated: the first half of the rows is the gate,
    the second is up. numpy arrays, as `Codes.stored()` gives them. Waits for the copy.

    Raises InputError for other dtypes, shapes, codes or scales; BackendError without a GPU.
    """
    _expect("codes", codes, "int8", 2)
    _expect("scales", scales, "float32", 1)
    return _pack(codes, scales, 8, codes.shape[1], None, gated, device)


def pack_w4(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float16],
    group_size: int,
    *,
    gated: bool = False,
    device: int = 0,
) -> PackedWeight:
    """Two 4-bit codes a byte, uint8 [out, in / 2], and scales float16 [out, groups] to a weight.

    W[o, k] = (nibble k of row o - 8) scales[o, k // group_size], the first nibble in the low half;
    in a multiple of 8; group_size 32, 64 or 128, the last group may be short (720 = 11 · 64 + 16).
    gated: the first half of the rows is the gate, the second is up. numpy arrays, as
    `Codes.stored()` gives them. Waits for the copy.

    Raises InputError for other dtypes, shapes or scales; BackendError without a GPU.
    """
    _expect("codes", codes, "uint8", 2)
    _expect("scales", scales, "float16", 2)
    bits: NDArray[np.uint16] = scales.view(np.uint16)
    return _pack(codes, bits, 4, 2 * codes.shape[1], group_size, gated, device)


def _expect(name: str, x: Any, dtype: str, rank: int) -> None:
    if not isinstance(x, np.ndarray) or x.dtype != dtype or x.ndim != rank:
        came = f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
        raise InputError(f"{name}: expected a numpy array of {dtype} with {rank} axes, got {came}")
    if not x.flags.c_contiguous:
        raise InputError(f"{name}: expected a contiguous array; call np.ascontiguousarray on it")


def _pack(
    codes: NDArray[Any],
    scales: NDArray[Any],
    bits: int,
    columns: int,
    group_size: int | None,
    gated: bool,
    device: int,
) -> PackedWeight:
    for name, number in (("group_size", group_size or 0), ("device", device)):
        if type(number) is not int or number < 0:
            raise InputError(f"{name}: expected an integer of 0 or more, got {number!r}")
    handle = operators().pack(codes, scales, bits, columns, group_size or 0, gated, device)
    out = len(codes) // 2 if gated else len(codes)
    return PackedWeight(bits, out, columns, group_size, gated, device, handle.bytes, handle)

"""Weights as integer codes: the formats that a bundle stores, exactly.

    w8a8   int8 codes in [-127, 127], one float32 scale for each output channel
    w4a8   int4 codes in [-8, 7], one float16 scale for each group of 32, 64 or 128 inputs of an
           output channel; the last group of a row may be shorter (720 = 11 x 64 + 16)

A weight NAME [out, in] is stored as NAME, of I8 [out, in] or U8 [out, (in + 1) / 2] with two codes
plus 8 a byte and the first in the low half, and NAME.scale, of F32 [out] or F16 [out, groups]. A
weight is its codes times their scale. What it is multiplied with is rounded to int8 while running,
each token by a scale of its own (`round_rows`); sums are exact integers. Vision's down projections
may have NAME.input_scale, of F32 [in], too: their inputs are multiplied by it before they are
rounded (smooth.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.errors import CheckpointError, QuantizationError
from smolvla_edge.safetensors_file import TensorEntry, TensorLayout, read_tensor

SCALE = ".scale"
INPUT_SCALE = ".input_scale"
GROUP_SIZES = (32, 64, 128)
MAX_CODES = 65536  # in a row: kMaxCodes of csrc/cpu/kernels.h
MOST = {8: 127, 4: 7}

# The matrices that may be codes: those of the three transformers and the connector. Patch embedding
# and heads meet pixels and the robot's own numbers, and are under 0.1 % of the work.
_MATRIX = re.compile(
    r"(vision|text|expert)\.layers\.\d+\.(attn\.[qkvo]|mlp\.(gate|up|down))\.weight"
    r"|connector\.weight"
)
_TABLE = "text.embed.weight"  # rows are looked up, not multiplied: int8 codes only


@dataclass(frozen=True)
class CodeFormat:
    """How a weight is stored as codes. group_size: of int4, None for int8. input_scale: whether its
    inputs are multiplied by factors of their own before they are rounded.

    Raises QuantizationError for anything but the formats above.
    """

    bits: int
    group_size: int | None = None
    input_scale: bool = False

    def __post_init__(self) -> None:
        whole = all(type(x) is int for x in (self.bits, self.group_size or 0))
        sizes: tuple[int | None, ...] = GROUP_SIZES if whole and self.bits == 4 else (None,)
        known = whole and self.bits in MOST and self.group_size in sizes
        if not known or not isinstance(self.input_scale, bool):
            raise QuantizationError(
                "codes: expected 8 bits, or 4 bits in groups of 32, 64 or 128, got "
                f"{self.bits!r} bits in groups of {self.group_size!r}"
            )

    @property
    def name(self) -> str:
        return f"w{self.bits}a8" + ("" if self.group_size is None else f" g{self.group_size}")

    def groups(self, columns: int) -> int:
        return 1 if self.group_size is None else -(-columns // self.group_size)

    def layouts(self, name: str, shape: tuple[int, ...]) -> tuple[TensorLayout, ...]:
        """What a weight [out, in] of this name is stored as: codes, scales, any input scales."""
        rows, columns = shape
        factors = (TensorLayout(name + INPUT_SCALE, "F32", (columns,)),) if self.input_scale else ()
        if self.group_size is None:
            codes = TensorLayout(name, "I8", shape)
            return (codes, TensorLayout(name + SCALE, "F32", (rows,)), *factors)
        return (
            TensorLayout(name, "U8", (rows, (columns + 1) // 2)),
            TensorLayout(name + SCALE, "F16", (rows, self.groups(columns))),
            *factors,
        )


def is_table(name: str) -> bool:
    """Whether the rows of a weight of codes are looked up: nothing is rounded beside them."""
    return name == _TABLE


def may_scale_inputs(name: str) -> bool:
    """Whether a weight of codes may have input scales: one whose input no norm or matrix makes."""
    return re.fullmatch(r"vision\.layers\.\d+\.mlp\.down\.weight", name) is not None


def may_be_codes(name: str, shape: tuple[int, ...], form: CodeFormat | None = None) -> bool:
    """Whether a tensor of this canonical name can be stored as codes (of this format)."""
    if form is not None and form.input_scale and not may_scale_inputs(name):
        return False
    if is_table(name):
        return form is None or form.bits == 8
    return _MATRIX.fullmatch(name) is not None and len(shape) == 2 and shape[1] <= MAX_CODES


def stacked_with(name: str, cross_layers: Collection[int]) -> str:
    """A key that is the same for weights that are computed together and need one format.

    cross_layers: the expert's, whose queries are computed apart from keys and values.
    """
    found = re.fullmatch(r"(\w+)\.layers\.(\d+)\.(attn|mlp)\.(\w+)\.weight", name)
    if found is None:
        return name
    part, layer, block, matrix = found.groups()
    together = "qkv"
    if part == "expert" and int(layer) in cross_layers:
        together = "kv"
    if block == "attn" and matrix in together:
        matrix = together
    if part != "vision" and matrix in ("gate", "up"):
        matrix = "gate_up"
    return f"{part}.layers.{layer}.{block}.{matrix}"


@dataclass(frozen=True)
class Codes:
    """A weight as codes: int8 [out, in] within the format's range, float32 scales [out, groups]."""

    format: CodeFormat
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def weight(self) -> NDArray[np.float32]:
        """What the codes stand for, float32 [out, in]."""
        size = self.format.group_size or self.codes.shape[1]
        wide = np.repeat(self.scales, size, axis=1)[:, : self.codes.shape[1]]
        product: NDArray[np.float32] = self.codes.astype(np.float32) * wide
        return product

    def stored(self) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
        """Codes and scales as they are stored."""
        if self.format.group_size is None:
            return self.codes, self.scales[:, 0]
        return pack4(self.codes), self.scales.astype(np.float16)

    @staticmethod
    def read(
        form: CodeFormat, columns: int, codes: NDArray[np.generic], scales: NDArray[np.generic]
    ) -> Codes:
        """From what `stored` gave. Raises QuantizationError for what quantising never writes."""
        wide = scales.astype(np.float32).reshape(len(scales), -1)
        if not np.isfinite(wide).all():
            raise QuantizationError("expected finite scales, got NaN or infinity")
        if form.group_size is not None:
            return Codes(form, unpack4(codes.astype(np.uint8), columns), wide)
        if (codes == -128).any():
            raise QuantizationError("expected codes in [-127, 127], got -128")
        return Codes(form, codes.astype(np.int8), wide)


def read_codes(tensors: Mapping[str, TensorEntry], name: str, shape: tuple[int, ...]) -> Codes:
    """A weight [out, in] that is stored as codes. Raises CheckpointError if it is not."""
    entry, scales = tensors[name], tensors.get(name + SCALE)
    if scales is None or len(shape) != 2:
        raise CheckpointError(f"{name} holds codes: expected {name}{SCALE} beside it, got none")
    for form in (CodeFormat(8), *(CodeFormat(4, size) for size in GROUP_SIZES)):
        stored = [(x.dtype, x.shape) for x in form.layouts(name, shape)]
        if stored == [(entry.dtype, tuple(entry.shape)), (scales.dtype, tuple(scales.shape))]:
            return Codes.read(form, shape[1], read_tensor(entry), read_tensor(scales))
    raise CheckpointError(
        f"{name}: expected codes of {list(shape)}, got {entry.dtype} {list(entry.shape)} with "
        f"scales {scales.dtype} {list(scales.shape)}"
    )


def pack4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Codes in [-8, 7], int8 [out, in] -> two of them plus 8 a byte, uint8 [out, (in + 1) / 2].

    Of an odd row the last byte's upper half is 0.
    """
    shifted = (codes + 8).astype(np.uint8)
    if shifted.shape[1] % 2:
        shifted = np.pad(shifted, ((0, 0), (0, 1)))
    return (shifted[:, ::2] | shifted[:, 1::2] << 4).astype(np.uint8)


def unpack4(packed: NDArray[np.uint8], columns: int) -> NDArray[np.int8]:
    """The inverse of pack4."""
    both = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1)
    codes: NDArray[np.int8] = both[:, :columns].astype(np.int8) - np.int8(8)
    return codes


def grouped(weight: NDArray[np.float32], size: int | None) -> NDArray[np.float32]:
    """float32 [out, in] -> [out, groups, size], the last group filled up with zeros."""
    size = size or weight.shape[1]
    short = -weight.shape[1] % size
    return np.pad(weight, ((0, 0), (0, short))).reshape(len(weight), -1, size)


def nearest_codes(
    weight: NDArray[np.float32], scales: NDArray[np.float32], form: CodeFormat
) -> Codes:
    """The codes whose weights come nearest, under given scales [out, groups] (0: codes 0)."""
    most = MOST[form.bits]
    groups = grouped(weight, form.group_size)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    codes = np.rint(groups * inverse[:, :, None])
    least = -most if form.bits == 8 else -most - 1
    codes = np.clip(codes, least, most).astype(np.int8)
    return Codes(form, codes.reshape(len(weight), -1)[:, : weight.shape[1]], scales)


def stored_scales(scales: NDArray[np.floating], form: CodeFormat) -> NDArray[np.float32]:
    """Scales as the format stores them, in float32. Raises QuantizationError for one too large."""
    if form.group_size is None:
        return scales.astype(np.float32)
    with np.errstate(over="ignore"):
        narrow = scales.astype(np.float16).astype(np.float32)
    if not np.isfinite(narrow).all():
        raise QuantizationError(
            f"expected weights whose scale float16 can hold, got a scale of {scales.max():.3g}"
        )
    return narrow


def round_to_nearest(weight: NDArray[np.float32], form: CodeFormat) -> Codes:
    """Symmetric rounding: each scale is the largest magnitude of its group over the largest code.

    Raises QuantizationError for a weight with NaN or infinity.
    """
    if not np.isfinite(weight).all():
        raise QuantizationError("expected finite weights, got NaN or infinity")
    largest = np.abs(grouped(weight, form.group_size)).max(axis=2)
    return nearest_codes(weight, stored_scales(largest / MOST[form.bits], form), form)


def round_rows(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rows of activations as the kernels round them: int8 [rows, in] and float32 scales [rows].

    The code is x * (127 / max |x|) to the nearest, ties to even, each of the two operations rounded
    once; the scale is max |x| / 127. Both are 0 where max |x| is below 2^-100. A row with a NaN or
    an infinity has codes 0 and the scale NaN.
    """
    largest = np.abs(x).max(axis=1)
    finite = np.isfinite(largest)
    live = finite & (largest >= np.float32(2.0**-100))
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=live)
    codes = np.rint(np.where(live[:, None], x, 0) * inverse[:, None]).astype(np.int8)
    dead = np.where(finite, np.float32(0), np.float32(np.nan))
    return codes, np.where(live, largest / np.float32(127), dead)


def formats_json(codes: Mapping[str, CodeFormat]) -> dict[str, dict[str, int | None]]:
    return {
        name: {"bits": f.bits, "group_size": f.group_size, "input_scale": f.input_scale}
        for name, f in codes.items()
    }

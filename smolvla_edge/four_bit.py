"""Checkpoints whose weights are in bitsandbytes' 4-bit format (NF4, FP4): read and decoded.

A weight NAME that bitsandbytes' Linear4bit saved is several tensors:

    NAME                                    uint8, two codes a byte, the first in the high half
    NAME.quant_state.bitsandbytes__nf4      JSON as bytes: type, block size, dtype, shape  (or fp4)
    NAME.quant_map                          float32 [16], what a code stands for
    NAME.absmax                             float32 [blocks], what the values of a block are times
    NAME.nested_absmax, .nested_quant_map   with double quantisation: absmax is uint8 then, codes of
                                            256 values in blocks of their own

Blocks run over the weight as one long row: at 720 columns and blocks of 64 they straddle rows. (The
CPU kernels of bitsandbytes 0.50 begin anew at each row and give wrong numbers there; the files are
right, and what is decoded here is what they say. QLoRA, Dettmers et al. 2023.)
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.bundle import sha256_of
from smolvla_edge.errors import CheckpointError
from smolvla_edge.precision import to_bfloat16
from smolvla_edge.safetensors_file import (
    SafetensorsWriter,
    TensorEntry,
    TensorLayout,
    iter_tensor_bytes,
    read_tensor,
)
from smolvla_edge.strict_json import parse_json_object
from smolvla_edge.weight_files import INDEX_FILE, SINGLE_FILE, open_weights

_STATE = re.compile(r"(?P<name>.+)\.quant_state\.bitsandbytes__(?P<type>nf4|fp4)")
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_MAX_STATE_BYTES = 4096
_MAX_ELEMENTS = 1 << 31
_SPARE_BYTES = 64 << 20  # left free on the disk


@dataclass(frozen=True)
class FourBitWeight:
    """One weight, found and checked, not yet read. dtype: of the decoded weight, as safetensors
    names it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    block_size: int
    codes: TensorEntry
    absmax: TensorEntry
    map: TensorEntry
    nested: tuple[TensorEntry, TensorEntry, int, float] | None  # absmax, map, block size, offset

    def weight(self) -> NDArray[np.float32]:
        """What the codes stand for, float32 of its shape: code's value times block's absmax.

        Raises CheckpointError for a map or an absmax that is not finite.
        """
        count = math.prod(self.shape)
        packed = read_tensor(self.codes).reshape(-1)
        codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]
        values = _finite(self.map)[codes]
        scales = self._scales().repeat(self.block_size)[:count]
        weight: NDArray[np.float32] = (values * scales).reshape(self.shape)
        return weight

    def _scales(self) -> NDArray[np.float32]:
        if self.nested is None:
            return _finite(self.absmax)
        absmax, quant_map, size, offset = self.nested
        codes = read_tensor(self.absmax).reshape(-1)
        wide = _finite(absmax).repeat(size)[: len(codes)]
        scales: NDArray[np.float32] = _finite(quant_map)[codes] * wide + np.float32(offset)
        return scales


def _finite(entry: TensorEntry) -> NDArray[np.float32]:
    values: NDArray[np.float32] = read_tensor(entry).reshape(-1)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{entry.name}: expected finite numbers, got NaN or infinity")
    return values


def find_four_bit(
    entries: Mapping[str, TensorEntry],
) -> tuple[dict[str, FourBitWeight], dict[str, TensorEntry]]:
    """({name: weight in 4 bits}, the tensors that belong to none). Raises CheckpointError."""
    weights: dict[str, FourBitWeight] = {}
    rest = dict(entries)
    for name in entries:
        found = _STATE.fullmatch(name)
        if found is None:
            continue
        weight = _parse(entries, found["name"], found["type"], entries[name])
        weights[weight.name] = weight
        rest.pop(name)
        for part in (weight.name, *(f"{weight.name}.{part}" for part in _PARTS)):
            rest.pop(part, None)
    return weights, rest


def _parse(
    entries: Mapping[str, TensorEntry], name: str, kind: str, state: TensorEntry
) -> FourBitWeight:
    def refuse(reason: str) -> NoReturn:
        raise CheckpointError(f"{name}: a 4-bit weight of bitsandbytes, but {reason}")

    def part(suffix: str, dtype: str, count: int) -> TensorEntry:
        entry = entries.get(name + suffix)
        if entry is None:
            refuse(f"{name}{suffix} is missing")
        if entry.dtype != dtype or math.prod(entry.shape) != count:
            refuse(
                f"{name}{suffix}: expected {count} numbers of {dtype}, got {list(entry.shape)} of "
                f"{entry.dtype}"
            )
        return entry

    if state.dtype != "U8" or state.nbytes > _MAX_STATE_BYTES:
        refuse(f"its state is {state.nbytes} bytes of {state.dtype}, expected a little JSON")
    raw = parse_json_object(read_tensor(state).tobytes(), state.name, CheckpointError)
    if raw.get("quant_type") != kind:
        refuse(f"its state says {raw.get('quant_type')!r:.40} and is stored as {kind}")
    shape, size = _shape(raw.get("shape")), raw.get("blocksize")
    if shape is None:
        refuse(f"its shape is {raw.get('shape')!r:.80}")
    if type(size) is not int or size not in _BLOCK_SIZES:
        refuse(f"its blocks have {size!r:.40} values, expected one of {_BLOCK_SIZES}")
    dtype = _DTYPES.get(str(raw.get("dtype")))
    if dtype is None:
        refuse(f"its dtype is {raw.get('dtype')!r:.40}, expected one of {', '.join(_DTYPES)}")
    count = math.prod(shape)
    blocks = -(-count // size)
    nested = None
    if f"{name}.nested_absmax" in entries:
        inner, offset = raw.get("nested_blocksize"), raw.get("nested_offset")
        if type(inner) is not int or inner not in _BLOCK_SIZES:
            refuse(f"its absmax is in blocks of {inner!r:.40}, expected one of {_BLOCK_SIZES}")
        if not isinstance(offset, float) or not math.isfinite(offset):
            refuse(f"its absmax is in blocks of {inner!r:.40} around {offset!r:.40}")
        nested = (
            part(".nested_absmax", "F32", -(-blocks // inner)),
            part(".nested_quant_map", "F32", 256),
            inner,
            offset,
        )
    return FourBitWeight(
        name=name,
        shape=shape,
        dtype=dtype,
        block_size=size,
        codes=part("", "U8", (count + 1) // 2),
        absmax=part(".absmax", "F32" if nested is None else "U8", blocks),
        map=part(".quant_map", "F32", 16),
        nested=nested,
    )


def _shape(raw: object) -> tuple[int, int] | None:
    if not isinstance(raw, list) or len(raw) != 2:
        return None
    rows, columns = raw
    if type(rows) is not int or type(columns) is not int or min(rows, columns) < 1:
        return None
    return (rows, columns) if rows * columns < _MAX_ELEMENTS else None


def holds_four_bit(folder: Path) -> bool:
    """Whether a folder has tensor files with 4-bit weights; what is broken is for others to say."""
    try:
        return any(is_state(name) for file in open_weights(folder) for name in file.entries)
    except CheckpointError:
        return False


def is_state(name: str) -> bool:
    """Whether a tensor of this name says that a weight is in 4 bits."""
    return _STATE.fullmatch(name) is not None


def decode_checkpoint(folder: Path, dest: Path) -> dict[str, Any]:
    """A copy of a checkpoint folder at `dest` with its 4-bit weights decoded, each in the dtype
    that it was quantised from; -> what was decoded, for the provenance, with the SHA-256 of the
    files that held it. Of other files the small ones that a policy may need are copied.

    Raises CheckpointError for a state that does not fit its tensors, and for too little space.
    """
    opened = open_weights(folder)
    files = {file.path for file in opened}
    entries = {name: entry for file in opened for name, entry in file.entries.items()}
    weights, rest = find_four_bit(entries)
    layouts = [TensorLayout(e.name, e.dtype, e.shape) for e in rest.values()]
    layouts += [TensorLayout(w.name, w.dtype, w.shape) for w in weights.values()]
    dest.mkdir(parents=True)
    needed, free = sum(layout.nbytes for layout in layouts), shutil.disk_usage(dest).free
    if free < needed + _SPARE_BYTES:
        raise CheckpointError(
            f"decoding {folder} needs {needed >> 20} MiB for a while, and {dest.parent.parent} has "
            f"{free >> 20} MiB free"
        )
    for path in [*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("*/*.json")]:
        if path.name != INDEX_FILE and path not in files and path.is_file():
            copy = dest / path.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
    with SafetensorsWriter(dest / SINGLE_FILE, layouts, {"format": "pt"}) as writer:
        for layout in writer.order:
            if layout.name in weights:
                writer.write(layout.name, _narrow(weights[layout.name].weight(), layout.dtype))
            else:
                writer.write(layout.name, iter_tensor_bytes(rest[layout.name]))
    return {
        "weights": len(weights),
        "block_sizes": sorted({weight.block_size for weight in weights.values()}),
        "double": any(weight.nested is not None for weight in weights.values()),
        "sha256": {path.name: sha256_of(path) for path in sorted(files)},
    }


def _narrow(weight: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """To the nearest, ties to even, as torch rounds."""
    if dtype == "F32":
        return weight
    return weight.astype(np.float16) if dtype == "F16" else to_bfloat16(weight)

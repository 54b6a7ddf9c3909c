"""What a graph's weights hold: a bundle's tensors as ONNX stores them, in one file a graph.

A matrix is stored [in, out]. Codes are the bundle's own, and so are their scales: nothing is
rounded a second time. A tensor that a bundle keeps in bfloat16 stays so beside weights of codes,
and is widened by a Cast that runtimes fold while loading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from smolvla_edge.codes import INPUT_SCALE, SCALE, CodeFormat, Codes, pack4, read_codes
from smolvla_edge.config import ModelConfig
from smolvla_edge.errors import ExportError
from smolvla_edge.model.vision import patch_positions
from smolvla_edge.names import expected_tensors
from smolvla_edge.safetensors_file import TensorEntry, as_float32, read_tensor

ALIGNMENT = 64
INT8_BLOCK = 128
"""Inputs under one scale where a format has one for all of them: runtimes know such weights with
powers of two alone, so the scale is repeated."""

MOMENTS = "flow.moments"
"""What the time MLP's first matrix makes of every step's time, in a graph of a settled plan."""

NARROW_ELEMS = 1 << 16
"""Smaller tensors are widened: they are not worth a Cast."""

FLOATS = {torch.float32: np.float32, torch.float16: np.float16}


def block_of(form: CodeFormat) -> int:
    return form.group_size or INT8_BLOCK


@dataclass(frozen=True)
class Stored:
    """One tensor of a weights file."""

    dtype: ir.DataType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class WeightsFile:
    """Writes tensors one after the other and remembers where they lie."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Stored] = {}
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115

    def add(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], data: Any) -> None:
        """`data`: an array whose bytes are the tensor's."""
        self._file.write(bytes(-self._file.tell() % ALIGNMENT))
        offset = self._file.tell()
        values = np.ascontiguousarray(data)
        values.tofile(self._file)
        self.tensors[name] = Stored(dtype, shape, offset, values.nbytes)

    def close(self) -> None:
        self._file.close()

    def external(self, name: str) -> ir.ExternalTensor:
        stored = self.tensors[name]
        return ir.ExternalTensor(
            self.path.name,
            stored.offset,
            stored.nbytes,
            stored.dtype,
            shape=ir.Shape(stored.shape),
            name=name,
            base_dir=str(self.path.parent),
        )


class Weights:
    """The tensors of a policy, by the names that the traced modules give them.

    Everything that is computed for an export (folded matrices, rows of the position table) is made
    here, in float64 and rounded once. `form`: of FORMS, how codes lie.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, TensorEntry],
        codes: Mapping[str, CodeFormat],
        dtype: torch.dtype,
        form: str,
        grid: tuple[int, int],
    ) -> None:
        self._config = config
        self._tensors = tensors
        self._codes = codes
        self._dtype = dtype
        self._form = form
        self._grid = grid
        self._shapes = {name: spec.shape for name, spec in expected_tensors(config).items()}
        self._computed: dict[str, Callable[[], NDArray[np.float32]]] = {
            "vision.position.weight": self._positions,
            "flow.action_in.weight": lambda: self._fold()[0],
            "flow.time_in.weight": self._time_half,
            "flow.time_in.bias": lambda: self._fold()[1],
        }

    @property
    def made(self) -> Mapping[str, Callable[[], NDArray[np.float32]]]:
        """What is computed for an export, by the name that graphs have for it, as it is stored."""
        return self._computed

    def write(self, file: WeightsFile, name: str) -> None:
        """Add what the graphs have under this name (codes: their scales too) to the file."""
        if name in self._computed:
            self._add(file, name, self._computed[name]())
        elif name.endswith("_input_scale"):
            self._add(file, name, self.array(name.removesuffix("_input_scale") + INPUT_SCALE))
        elif name == "text.embed.weight":
            self._add_table(file, name)
        elif name == "text.embed.weight_scale":
            scale = self.array("text.embed.weight" + SCALE)
            file.add(name, ir.DataType.FLOAT, scale.shape, scale)
        elif name in self._codes:
            self._add_codes(file, name)
        else:
            array = self.array(name)
            matrix = array.ndim == 2 and array.size >= NARROW_ELEMS
            narrow = bool(self._codes) and matrix and self._tensors[name].dtype == "BF16"
            self._add(file, name, array.T if array.ndim == 2 else array, narrow)

    def array(self, name: str) -> NDArray[np.float32]:
        """A tensor as the bundle has it, [out, in], widened; codes as what they stand for, with
        their inputs' scales."""
        entry = self._tensors[name]
        if entry.dtype in ("I8", "U8"):
            weight = read_codes(self._tensors, name, self._shapes[name]).weight()
            factors = self._tensors.get(name + INPUT_SCALE)
            return weight if factors is None else weight * read_tensor(factors)
        values: NDArray[np.float32] = as_float32(read_tensor(entry), entry.dtype)
        return values

    def _add(
        self, file: WeightsFile, name: str, values: NDArray[np.float32], narrow: bool = False
    ) -> None:
        if narrow:
            data = values.astype(ml_dtypes.bfloat16)
            file.add(name, ir.DataType.BFLOAT16, values.shape, data.view(np.uint16))
            return
        with np.errstate(over="ignore"):
            data = values.astype(FLOATS[self._dtype])
        if not np.isfinite(data).all():
            raise ExportError(
                f"{name}: expected weights that {np.dtype(data.dtype).name} can hold, got up to "
                f"{np.abs(values).max():g}; export with --precision float32"
            )
        dtype = ir.DataType.FLOAT if self._dtype is torch.float32 else ir.DataType.FLOAT16
        file.add(name, dtype, values.shape, data)

    def _add_table(self, file: WeightsFile, name: str) -> None:
        """The embedding table as it is stored: its rows are looked up."""
        entry = self._tensors[name]
        dtype = {"I8": ir.DataType.INT8, "BF16": ir.DataType.BFLOAT16, "F32": ir.DataType.FLOAT}
        values = read_tensor(entry)
        if entry.dtype == "I8" and name not in self._codes:
            values = self.array(name)
        if values.dtype == np.float32 and self._dtype is torch.float16:
            self._add(file, name, values)
            return
        stored = ir.DataType.FLOAT if values.dtype == np.float32 else dtype[entry.dtype]
        file.add(name, stored, values.shape, values)

    def _add_codes(self, file: WeightsFile, name: str) -> None:
        codes = read_codes(self._tensors, name, self._shapes[name])
        block = block_of(codes.format)
        rows, columns = codes.codes.shape
        blocks = math.ceil(columns / block)
        scales = np.broadcast_to(codes.scales, (rows, blocks))
        stored = ir.DataType.FLOAT if codes.format.group_size is None else ir.DataType.FLOAT16
        narrow = scales.astype(np.float32 if stored is ir.DataType.FLOAT else np.float16)
        if self._form == "matmulnbits":
            self._add_blocks(file, name, codes, blocks, block)
            file.add(scale_of(name), stored, (rows, blocks), narrow)
            return
        if self._form == "integer" and codes.format.bits == 8:
            file.add(name, ir.DataType.INT8, (columns, rows), codes.codes.T)
            file.add(scale_of(name), ir.DataType.FLOAT, (rows,), codes.scales[:, 0])
            return
        # [in, out], the first of a pair in the low half: what ONNX calls INT4.
        turned = codes.codes.T
        if codes.format.bits == 4:
            file.add(name, ir.DataType.INT4, (columns, rows), pack_int4(turned))
        else:
            file.add(name, ir.DataType.INT8, (columns, rows), turned)
        file.add(scale_of(name), stored, (blocks, rows), narrow.T)

    def _add_blocks(
        self, file: WeightsFile, name: str, codes: Codes, blocks: int, block: int
    ) -> None:
        """As MatMulNBits has them: uint8 [out, blocks, bytes of a block], codes from 0 up; what a
        short last block lacks is the code of zero."""
        rows, columns = codes.codes.shape
        padded = np.pad(codes.codes, ((0, 0), (0, blocks * block - columns)))
        if codes.format.bits == 4:
            data = pack4(padded)
        else:
            data = (padded.astype(np.int16) + 128).astype(np.uint8)
        shape = (rows, blocks, block * codes.format.bits // 8)
        file.add(name, ir.DataType.UINT8, shape, data)

    def _positions(self) -> NDArray[np.float32]:
        """The rows of the position table that the patches of these frames take."""
        rows = patch_positions(*self._grid, self._config.position_side, torch.float32)
        return self.array("vision.position.weight")[rows.numpy()]

    def _fold(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """time_in's half for actions, times action_in: [A, width] and the bias of both."""
        half = self.array("time_in.weight")[:, : self._config.expert_width].astype(np.float64)
        weight = half @ self.array("action_in.weight").astype(np.float64)
        bias = half @ self.array("action_in.bias") + self.array("time_in.bias")
        return weight.T.astype(np.float32), bias.astype(np.float32)

    def _time_half(self) -> NDArray[np.float32]:
        return self.array("time_in.weight")[:, self._config.expert_width :].T


def pack_int4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """An even number of codes in [-8, 7] -> two a byte, the first in the low half: ONNX's INT4."""
    nibbles = codes.reshape(-1).astype(np.uint8) & 15
    packed: NDArray[np.uint8] = (nibbles[::2] | nibbles[1::2] << 4).astype(np.uint8)
    return packed


def scale_of(name: str) -> str:
    return name + "_scale"


def parameter_names(module: torch.nn.Module) -> Iterator[str]:
    for name, _ in module.named_parameters():
        yield name


def embedding_dtype(
    tensors: Mapping[str, TensorEntry], codes: Mapping[str, CodeFormat], dtype: torch.dtype
) -> torch.dtype:
    """What the embedding table is stored as in a graph that computes in `dtype`."""
    stored = tensors["text.embed.weight"].dtype
    if stored == "I8" and "text.embed.weight" in codes:
        return torch.int8
    if stored == "BF16":
        return torch.bfloat16
    return dtype

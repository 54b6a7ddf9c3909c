"""Is an export what it says it is? Its files read again, and compared with the source.

Weights   Every tensor with data of its own: dtype, shape, bytes. A weight that the source holds as
          codes is there as these very codes, under these very scales; no float twin of it is. One
          that it holds as floats is there to the bit, or rounded once to the type it says.
Graphs    onnx.checker with full_check, shape inference in strict mode with data propagation.
Operators What ONNX Runtime really runs after its own optimisation (audit_run.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from smolvla_edge.codes import INPUT_SCALE, CodeFormat, Codes, is_table, read_codes, unpack4
from smolvla_edge.errors import VerificationError
from smolvla_edge.export.stored import Weights, block_of, scale_of
from smolvla_edge.names import expected_tensors
from smolvla_edge.onnx_folder import ExportFolder
from smolvla_edge.source import Source

Kind = onnx.TensorProto
CODES = {Kind.INT4: 4, Kind.INT8: 8, Kind.UINT8: 8}  # UINT8: of MatMulNBits, whatever the bits
FLOATS = (Kind.FLOAT, Kind.FLOAT16, Kind.BFLOAT16, Kind.DOUBLE)
STORED: dict[int, Any] = {
    Kind.FLOAT: np.float32, Kind.FLOAT16: np.float16, Kind.BFLOAT16: ml_dtypes.bfloat16
}  # fmt: skip
BITS = {Kind.FLOAT: 32, Kind.FLOAT16: 16, Kind.BFLOAT16: 16, Kind.DOUBLE: 64, Kind.INT4: 4,
        Kind.UINT4: 4, Kind.INT8: 8, Kind.UINT8: 8, Kind.BOOL: 8, Kind.INT32: 32,
        Kind.INT64: 64}  # fmt: skip
SMALL_ELEMS = 1 << 12  # a tensor without a weight's name and smaller than this is a constant


@dataclass(frozen=True)
class Tensor:
    """An initializer or constant of a graph, at any depth. file: None where its data is inside."""

    graph: str
    name: str
    dtype: int
    shape: tuple[int, ...]
    file: str | None
    offset: int
    nbytes: int

    @property
    def kind(self) -> str:
        return Kind.DataType.Name(self.dtype)


def audit_weights(
    folder: ExportFolder, source: Source, codes: Mapping[str, CodeFormat]
) -> dict[str, Any]:
    """Facts for the report. codes: what the export should hold as such. Raises VerificationError
    where a tensor is not what the source has, or one is there that should not be."""
    reader = _reader(folder, source)
    found: dict[str, Tensor] = {}
    for graph in folder.manifest.graphs:
        model = onnx.load(folder.graph_file(graph), load_external_data=False)
        for tensor in tensors_of(graph, model):
            _check_size(tensor)
            _check_kind(tensor, {*source.tensors, *reader.made}, codes)
            if tensor.file is None:
                continue
            first = found.setdefault(tensor.name, tensor)
            if replace(first, graph=graph) != tensor:  # `policy` names those of the others again
                _refuse(tensor, f"what {first.graph} has under this name", "another tensor")
    shapes = {name: spec.shape for name, spec in expected_tensors(source.model).items()}
    compared = 0
    for name in codes:
        if name not in found:  # of a layer that the plan leaves out, or keys that nobody reads
            continue
        _check_codes(folder.path, found, name, read_codes(source.tensors, name, shapes[name]))
        compared += 1
    floats = 0
    for name, tensor in found.items():
        if name in reader.made:
            _check_floats(folder.path, tensor, reader.made[name]())
        elif _original(name) in source.tensors and name not in codes:
            values = reader.array(_original(name))
            turned = values.ndim == 2 and not is_table(name)
            _check_floats(folder.path, tensor, values.T if turned else values)
        else:
            continue
        floats += 1
    sizes: Counter[str] = Counter()
    for tensor in found.values():
        sizes[tensor.kind] += tensor.nbytes
    return {
        "bytes_by_dtype": dict(sorted(sizes.items())),
        "codes_compared": compared,
        "floats_compared": floats,
        "tensors": {
            tensor.name: {
                "file": tensor.file,
                "dtype": tensor.kind,
                "shape": list(tensor.shape),
                "bytes": tensor.nbytes,
            }
            for tensor in sorted(found.values(), key=lambda item: item.name)
        },
    }


def _reader(folder: ExportFolder, source: Source) -> Weights:
    """The source's weights as floats, and what is computed of them."""
    model = source.model
    sides = folder.manifest.graphs["vision"].input("pixels").shape[2:]
    rows, columns = (int(side) // model.patch_size for side in sides)
    return Weights(model, source.tensors, {}, torch.float32, "qdq", (rows, columns))


def audit_graphs(folder: ExportFolder) -> dict[str, Any]:
    """onnx's own checks of every graph. Raises VerificationError."""
    strict = "onnx.checker full_check; shape inference strict, with data propagation"
    for name in folder.manifest.graphs:
        path = folder.graph_file(name)
        try:
            onnx.checker.check_model(str(path), full_check=True)
            model = onnx.load(path, load_external_data=False)
            onnx.shape_inference.infer_shapes(
                model, check_type=True, strict_mode=True, data_prop=True
            )
        except Exception as cause:  # of several modules, some of them not public
            raise VerificationError(
                f"audit: {path.name}: expected a graph that onnx {onnx.__version__} accepts, got: "
                f"{str(cause).strip()[:400]}"
            ) from cause
    return {"passed": sorted(folder.manifest.graphs), "checks": strict}


def tensors_of(graph: str, model: onnx.ModelProto) -> Iterator[Tensor]:
    """Of the graph, of graphs inside its nodes, and of the bodies of functions."""
    for proto in each_graph(model.graph):
        for tensor in proto.initializer:
            yield _tensor(graph, tensor)
        yield from _constants(graph, proto.node)
    for function in model.functions:
        yield from _constants(graph, function.node)


def each_graph(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from each_graph(inner)


def _constants(graph: str, nodes: Any) -> Iterator[Tensor]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield _tensor(graph, attribute.t)


def _tensor(graph: str, proto: onnx.TensorProto) -> Tensor:
    shape = tuple(proto.dims)
    if proto.data_location != Kind.EXTERNAL:
        inside = -(-math.prod(shape) * BITS.get(proto.data_type, 64) // 8)
        return Tensor(graph, proto.name, proto.data_type, shape, None, 0, inside)
    said = {entry.key: entry.value for entry in proto.external_data}
    return Tensor(graph, proto.name, proto.data_type, shape, said["location"],
                  int(said.get("offset", 0)), int(said["length"]))  # fmt: skip


def _check_size(tensor: Tensor) -> None:
    bits = BITS.get(tensor.dtype)
    expected = None if bits is None else -(-math.prod(tensor.shape) * bits // 8)
    if tensor.file is not None and tensor.nbytes != expected:
        _refuse(tensor, f"{expected} bytes for {tensor.kind} {list(tensor.shape)}",
                f"{tensor.nbytes}")  # fmt: skip


def _check_kind(tensor: Tensor, floats: Collection[str], codes: Mapping[str, CodeFormat]) -> None:
    """No weight is wider than it should be, under its own name or another."""
    if tensor.dtype not in FLOATS or math.prod(tensor.shape) < SMALL_ELEMS:
        if tensor.name in codes and tensor.dtype not in CODES:
            _refuse(tensor, f"codes of {codes[tensor.name].bits} bits", tensor.kind)
        return
    name = tensor.name
    if name in codes:
        _refuse(tensor, f"codes of {codes[name].bits} bits", f"{tensor.kind} numbers")
    scales = {end for code in codes for end in (scale_of(code), f"{code}_input_scale")}
    if name not in floats and name not in scales:
        _refuse(tensor, "a weight of the source, or the scales of one",
                f"{tensor.kind} {list(tensor.shape)} that nothing accounts for")  # fmt: skip


def _check_codes(folder: Path, found: Mapping[str, Tensor], name: str, want: Codes) -> None:
    """The stored bytes, decoded, are the source's codes; and so are their scales."""
    tensor = found[name]
    raw = _read(folder, tensor)
    rows, columns = want.codes.shape
    decode: dict[int, Callable[[], NDArray[np.int8]]] = {
        Kind.INT4: lambda: _nibbles(raw, columns, rows).T,
        Kind.INT8: lambda: raw.view(np.int8).reshape(_as_stored(name, rows, columns)),
        Kind.UINT8: lambda: _blocks(raw, rows, columns, want.format),
    }
    got = decode[tensor.dtype]()
    if tensor.dtype == Kind.INT8 and not is_table(name):
        got = got.T
    # What fills up a last block is the code of zero.
    expected = np.pad(want.codes, ((0, 0), (0, got.shape[1] - columns)))
    differ = int((got != expected).sum())
    if differ:
        _refuse(tensor, "the codes of the source", f"{differ} others of {want.codes.size}")
    scales = found.get(scale_of(name))
    if scales is None:
        _refuse(tensor, f"its scales, {scale_of(name)}", "none")
    dtype = np.float32 if scales.dtype == Kind.FLOAT else np.float16
    stored = _read(folder, scales).view(dtype).reshape(scales.shape).astype(np.float32)
    if tensor.dtype != Kind.UINT8 and stored.ndim == 2:
        stored = stored.T
    given = want.scales[:, 0] if stored.ndim == 1 else want.scales
    if not np.array_equal(stored, np.broadcast_to(given, stored.shape)):
        _refuse(scales, "the scales of the source", "others")


def _original(name: str) -> str:
    """Its name in the source, where it has one."""
    if name.endswith("_input_scale"):
        return name.removesuffix("_input_scale") + INPUT_SCALE
    return name


def _check_floats(folder: Path, tensor: Tensor, want: NDArray[np.float32]) -> None:
    raw = _read(folder, tensor)
    if tensor.dtype not in STORED or tensor.shape != want.shape:
        _refuse(tensor, f"floats {list(want.shape)}", f"{tensor.kind} {list(tensor.shape)}")
    stored = want.astype(STORED[tensor.dtype])
    differ = int((raw.view(f"u{stored.itemsize}") != _bits(stored)).sum())
    if differ:
        _refuse(tensor, "the values of the source", f"{differ} others of {want.size}")


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    """As unsigned integers, row by row: NaN and -0 are compared as they are stored."""
    return np.ascontiguousarray(values).reshape(-1).view(f"u{values.itemsize}")


def _as_stored(name: str, rows: int, columns: int) -> tuple[int, int]:
    return (rows, columns) if is_table(name) else (columns, rows)


def _nibbles(raw: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.int8]:
    """ONNX's INT4: signed, the first of a pair in the low half."""
    both = np.stack([raw & 15, raw >> 4], 1).reshape(-1)[: rows * columns].astype(np.int8)
    return np.where(both > 7, both - 16, both).astype(np.int8).reshape(rows, columns)


def _blocks(raw: NDArray[np.uint8], rows: int, columns: int, form: CodeFormat) -> NDArray[np.int8]:
    """What MatMulNBits has: codes from 0 up, in whole blocks."""
    padded = -(-columns // block_of(form)) * block_of(form)
    packed = raw.reshape(rows, -1)
    if form.bits == 4:
        return unpack4(packed, padded)
    return (packed.astype(np.int16) - 128).astype(np.int8)


def _read(folder: Path, tensor: Tensor) -> NDArray[np.uint8]:
    with open(folder / str(tensor.file), "rb") as file:
        file.seek(tensor.offset)
        return np.fromfile(file, np.uint8, tensor.nbytes)


def _refuse(tensor: Tensor, expected: str, came: str) -> NoReturn:
    raise VerificationError(
        f"audit: {tensor.graph}: {tensor.name or 'a constant'}: expected {expected}, got {came}. "
        "Nothing was kept"
    )

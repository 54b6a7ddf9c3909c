"""Safetensors files: a strict reader and a streaming writer, without loading tensors.

    8 bytes      header length n, little endian
    n bytes      JSON: {"__metadata__": {str: str}, name: {"dtype", "shape", "data_offsets"}, ...}
    the rest     tensor data, row-major, little endian, covered exactly once by the offsets

The reader trusts nothing: whatever could make a later read run past the end, overlap another tensor
or hide bytes is refused here, before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.errors import CheckpointError, SmolVLAEdgeError
from smolvla_edge.strict_json import parse_json_object, without_waiting

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 1 << 16
MAX_RANK = 8
MAX_NAME_CHARS = 512
CHUNK_BYTES = 4 << 20

# bfloat16 and the 8-bit floats have no numpy dtype: they are handed out as their bits.
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "F64": "<f8", "I64": "<i8", "U64": "<u8",
        "F32": "<f4", "I32": "<i4", "U32": "<u4",
        "F16": "<f2", "BF16": "<u2", "I16": "<i2", "U16": "<u2",
        "I8": "i1", "U8": "u1", "BOOL": "?", "F8_E4M3": "u1", "F8_E5M2": "u1",
    }.items()
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `nbytes` at `offset`, counted from the start of the file at `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class TensorLayout:
    """Name, dtype and shape of a tensor that is going to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize


def read_tensor(
    entry: TensorEntry, error: type[SmolVLAEdgeError] = CheckpointError
) -> NDArray[Any]:
    """The tensor as an array of its shape that owns its memory (BF16 as uint16 bits).

    Read, not mapped: a file that shrinks meanwhile gives `error` instead of a bus error.
    """
    values = np.empty(entry.shape, NUMPY_DTYPES[entry.dtype])
    view = _byte_view(values)
    with _open(entry.path, error) as file:
        file.seek(entry.offset)
        filled = 0
        while filled < entry.nbytes:
            got = file.readinto(view[filled:])  # type: ignore[attr-defined]
            if not got:
                raise _ended_early(entry, filled, error)
            filled += got
    return values


def iter_tensor_bytes(
    entry: TensorEntry,
    max_bytes: int = CHUNK_BYTES,
    error: type[SmolVLAEdgeError] = CheckpointError,
) -> Iterator[bytes]:
    """The tensor's bytes in order, at most `max_bytes` at a time."""
    with _open(entry.path, error) as file:
        file.seek(entry.offset)
        done = 0
        while done < entry.nbytes:
            chunk = file.read(min(max_bytes, entry.nbytes - done))
            if not chunk:
                raise _ended_early(entry, done, error)
            done += len(chunk)
            yield chunk


def as_float32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Exact widening of F32, F16 or BF16 (given as uint16 bits) to float32."""
    if dtype == "BF16":
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    wide: NDArray[np.float32] = values.astype(np.float32, copy=False)
    return wide


class SafetensorsFile:
    """A safetensors file whose header has been read and checked completely.

    `entries` maps names to TensorEntry in the order of the data; `metadata` is `__metadata__`.
    Raises `error` (CheckpointError, or BundleError for a bundle) for anything malformed.
    """

    def __init__(
        self, path: str | os.PathLike[str], error: type[SmolVLAEdgeError] = CheckpointError
    ) -> None:
        self.path = Path(path)
        self._error = error
        with _open(self.path, error) as file:
            self.file_bytes = os.fstat(file.fileno()).st_size
            header = self._read_header(file)
        self._data_start = 8 + len(header)
        if not header.startswith(b"{"):
            self._refuse("its header does not begin with '{'")
        fields = parse_json_object(header, f"{self.path}: header", error)
        self.metadata = self._checked_metadata(fields.pop("__metadata__", {}))
        if len(fields) > MAX_TENSORS:
            self._refuse(f"it lists {len(fields)} tensors, more than {MAX_TENSORS}")
        entries = [self._checked_entry(name, field) for name, field in fields.items()]
        # Empty tensors share their begin with the next one; nbytes puts them first.
        entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
        self._check_cover(entries)
        self.entries: dict[str, TensorEntry] = {entry.name: entry for entry in entries}

    def read(self, name: str) -> NDArray[Any]:
        return read_tensor(self._entry(name), self._error)

    def iter_chunks(self, name: str, max_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        return iter_tensor_bytes(self._entry(name), max_bytes, self._error)

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self.entries[name]
        except KeyError:
            raise self._error(f"{self.path} holds no tensor named {name!r}") from None

    def _refuse(self, reason: str) -> NoReturn:
        raise self._error(
            f"{self.path} is not a valid safetensors file: {reason}. "
            "It may be truncated or damaged: copy or download it again"
        )

    def _read_header(self, file: BinaryIO) -> bytes:
        prefix = file.read(8)
        if len(prefix) < 8:
            self._refuse(f"it has {self.file_bytes} bytes; the header length alone takes 8")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES:
            self._refuse(f"its header claims {length} bytes, more than {MAX_HEADER_BYTES}")
        if length > self.file_bytes - 8:
            self._refuse(f"its header claims {length} bytes of the {self.file_bytes - 8} there are")
        header = file.read(length)
        if len(header) != length:
            self._refuse("it ended while its header was read")
        return header

    def _checked_metadata(self, metadata: object) -> dict[str, str]:
        if not isinstance(metadata, dict):
            self._refuse("__metadata__ is not an object")
        for key, value in metadata.items():
            if not isinstance(value, str):
                self._refuse(f"__metadata__[{key!r}] is not a string")
        return metadata

    def _checked_entry(self, name: str, field: object) -> TensorEntry:
        if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
            self._refuse(f"the tensor name {name[:80]!r} is empty, too long or unprintable")
        if not isinstance(field, dict) or field.keys() != {"dtype", "shape", "data_offsets"}:
            self._refuse(f"{name}: expected an object of dtype, shape and data_offsets")
        dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
        if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
            self._refuse(f"{name}: unknown dtype {dtype!r}; known are {', '.join(NUMPY_DTYPES)}")
        if not _are_sizes(shape) or len(shape) > MAX_RANK:
            self._refuse(
                f"{name}: shape {shape!r:.80} is not a list of at most {MAX_RANK} non-negative "
                "integers"
            )
        if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            self._refuse(f"{name}: data_offsets {offsets!r:.80} are not [begin, end]")
        begin, end = offsets
        nbytes = math.prod(shape) * NUMPY_DTYPES[dtype].itemsize  # Python integers: no overflow
        if end - begin != nbytes:
            self._refuse(
                f"{name}: {dtype} {shape} takes {nbytes} bytes, its offsets span {end - begin}"
            )
        if end > self.file_bytes - self._data_start:
            self._refuse(
                f"{name}: its data ends at byte {self._data_start + end} of a file of "
                f"{self.file_bytes}"
            )
        return TensorEntry(name, dtype, tuple(shape), self.path, self._data_start + begin, nbytes)

    def _check_cover(self, entries: list[TensorEntry]) -> None:
        covered = self._data_start
        for entry in entries:
            if entry.offset != covered:
                kind = "overlaps the tensor before it" if entry.offset < covered else "leaves a gap"
                self._refuse(f"{entry.name} {kind}: expected byte {covered}, got {entry.offset}")
            covered += entry.nbytes
        if covered != self.file_bytes:
            self._refuse(f"{self.file_bytes - covered} bytes follow the last tensor")


class SafetensorsWriter:
    """Writes a safetensors file tensor by tensor, in `order`; it appears under its name on success.

        with SafetensorsWriter(path, layouts, {"format": "pt"}) as writer:
            for layout in writer.order:
                writer.write(layout.name, chunks_of(layout))

    Like the reference writer, wide dtypes come first and then names, so that every tensor is
    aligned to its own element. Nothing but the chunk being written is held in memory.
    `file_bytes` is the size of the file to be; `sha256` its digest, known after the `with` block.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layouts: Iterable[TensorLayout],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.order = sorted(
            layouts, key=lambda item: (-NUMPY_DTYPES[item.dtype].itemsize, item.dtype, item.name)
        )
        self.sha256 = ""
        self._header = _encode_header(self.order, metadata or {})
        self.file_bytes = len(self._header) + sum(layout.nbytes for layout in self.order)
        self._written = 0

    def __enter__(self) -> SafetensorsWriter:
        self._hash = hashlib.sha256()
        handle, name = tempfile.mkstemp(
            prefix=self.path.name, suffix=".partial", dir=self.path.parent
        )
        self._partial = Path(name)
        self._file = os.fdopen(handle, "wb", buffering=0)
        self._put(memoryview(self._header))
        return self

    def write(
        self, name: str, data: NDArray[Any] | Iterable[bytes | memoryview | NDArray[Any]]
    ) -> None:
        """Writes the next tensor of `order`: an array, or chunks of its bytes.

        Raises ValueError when `name` is not the next one or the byte count is not its layout's.
        """
        done = self._written == len(self.order)
        expected = None if done else self.order[self._written]
        if expected is None or name != expected.name:
            raise ValueError(
                f"{self.path}: expected {expected and expected.name!r} next, got {name!r}"
            )
        count = 0
        for chunk in [data] if isinstance(data, np.ndarray) else data:
            view = _byte_view(chunk)
            count += len(view)
            if count > expected.nbytes:
                break
            self._put(view)
        if count != expected.nbytes:
            raise ValueError(
                f"{self.path}: {name} is {expected.dtype} {expected.shape} = {expected.nbytes} "
                f"bytes, got {'at least ' if count > expected.nbytes else ''}{count}"
            )
        self._written += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                if self._written != len(self.order):
                    raise ValueError(
                        f"{self.path}: {len(self.order) - self._written} tensors were not written"
                    )
                os.fchmod(self._file.fileno(), 0o644)  # mkstemp's 0600 is for secrets
                os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self._partial, self.path)
                self.sha256 = self._hash.hexdigest()
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)

    def _put(self, view: memoryview) -> None:
        self._hash.update(view)
        while view:  # an unbuffered write may be partial
            view = view[self._file.write(view) :]


def _encode_header(order: list[TensorLayout], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for layout in order:
        if layout.name in header:
            raise ValueError(f"two tensors are named {layout.name!r}")
        header[layout.name] = {
            "dtype": layout.dtype,
            "shape": list(layout.shape),
            "data_offsets": [offset, offset + layout.nbytes],
        }
        offset += layout.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _byte_view(data: bytes | memoryview | NDArray[Any]) -> memoryview:
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    return memoryview(data).cast("B") if data else memoryview(b"")


def _are_sizes(value: object) -> bool:
    # type() and not isinstance(): True is an int to Python, and a size to nobody.
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _open(path: Path, error: type[SmolVLAEdgeError]) -> BinaryIO:
    try:
        return open(path, "rb", buffering=0, opener=without_waiting)
    except OSError as cause:
        raise error(f"cannot open {path}: {cause.strerror or cause}") from cause


def _ended_early(entry: TensorEntry, got: int, error: type[SmolVLAEdgeError]) -> SmolVLAEdgeError:
    return error(
        f"{entry.path} ended inside {entry.name}: expected {entry.nbytes} bytes at "
        f"{entry.offset}, got {got}. The file changed while it was read: load it again"
    )

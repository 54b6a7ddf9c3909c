"""From a checkpoint to a bundle.

Tensors stream one by one into a temporary sibling directory that is renamed at the end, so a bundle
is there completely or not at all, and memory stays at a few megabytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smolvla_edge.bundle import Bundle, Progress, file_chunks, is_bundle, read_bundle
from smolvla_edge.bundle_format import (
    DESCRIPTION_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    WEIGHTS_METADATA,
    Description,
    FileRecord,
    TensorRecord,
)
from smolvla_edge.checkpoint import Checkpoint
from smolvla_edge.codes import CodeFormat
from smolvla_edge.config import ModelConfig
from smolvla_edge.contract import Contract
from smolvla_edge.errors import BundleError, TokenizerError
from smolvla_edge.paths import shown
from smolvla_edge.precision import CONVERT_DTYPES, convert_chunks, stored_dtype
from smolvla_edge.processors import POSTPROCESSOR, PREPROCESSOR
from smolvla_edge.safetensors_file import (
    SafetensorsWriter,
    TensorEntry,
    TensorLayout,
    iter_tensor_bytes,
)
from smolvla_edge.strict_json import read_small_file
from smolvla_edge.tokenizer import TaskTokenizer
from smolvla_edge.version import __version__

_SPARE_BYTES = 64 << 20  # left free on the disk beside the bundle


def write_bundle(
    checkpoint: Checkpoint,
    dest: str | os.PathLike[str],
    progress: Progress | None = None,
    *,
    dtype: str = "keep",
    force: bool = False,
    command: str | None = None,
    allow_no_tokenizer: bool = False,
) -> Bundle:
    """Convert a checkpoint into the bundle `dest` and return it as read back.

    dtype: "keep" stores tensors as they are, for float32 arithmetic; "bfloat16" rounds matrices
    and makes a bundle that computes in bfloat16. Memory stays at a few megabytes whatever the
    model's size. `force` replaces an existing bundle (and nothing else); `command` is kept in the
    provenance. Raises BundleError, TokenizerError for
    a checkpoint whose tokenizer is missing or malformed, CheckpointError when the source changes
    while it is read.
    """
    if dtype not in CONVERT_DTYPES:
        raise BundleError(f"dtype must be one of {', '.join(CONVERT_DTYPES)}, got {dtype!r}")
    target = Path(dest)
    check_target(target, force)
    if checkpoint.tokenizer_file is not None or not allow_no_tokenizer:
        check_tokenizer(str(checkpoint.path), checkpoint.tokenizer_file, checkpoint.contract)
    needed = sum(entry.nbytes for entry in checkpoint.tensors.values())
    with _making(target, needed) as partial:
        counter = _Counter(checkpoint, progress)
        source = _source_digests(checkpoint, counter)
        cross = checkpoint.model.cross_expert_layers()
        contents = Contents(
            model=checkpoint.model,
            contract=checkpoint.contract,
            tokenizer_file=checkpoint.tokenizer_file,
            layouts=[
                TensorLayout(name, stored_dtype(name, entry, cross, dtype), entry.shape)
                for name, entry in checkpoint.tensors.items()
            ],
            chunks=lambda layout: _converted(
                checkpoint.tensors[layout.name], layout.dtype, counter
            ),
            provenance={
                **checkpoint.provenance,
                "source_sha256": source,
                "converter": f"smolvla-edge {__version__}",
                "command": None if command is None else shown(command),
            },
            compute="float32" if dtype == "keep" else "bfloat16",
        )
        _fill(partial, contents)
    return read_bundle(target)


def check_tokenizer(source: str, file: Path | None, contract: Contract) -> None:
    """Raises TokenizerError for one that is missing or malformed: now, not on the robot."""
    if file is None:
        raise TokenizerError(
            f"{source}: no tokenizer.json was found, and a bundle must run offline. Pass "
            "--tokenizer FILE"
        )
    TaskTokenizer(file, contract.tokenizer)


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle; `chunks` gives the bytes of a tensor, once."""

    model: ModelConfig
    contract: Contract
    tokenizer_file: Path | None
    layouts: list[TensorLayout]
    chunks: Callable[[TensorLayout], Iterable[bytes]]
    provenance: Mapping[str, Any]
    compute: str
    codes: Mapping[str, CodeFormat] = field(default_factory=dict)


def put_bundle(contents: Contents, dest: str | os.PathLike[str], *, force: bool = False) -> Bundle:
    """Write a bundle of these contents and return it as read back. Raises BundleError."""
    target = Path(dest)
    check_target(target, force)
    with _making(target, sum(layout.nbytes for layout in contents.layouts)) as partial:
        _fill(partial, contents)
    return read_bundle(target)


@contextlib.contextmanager
def _making(target: Path, nbytes: int) -> Iterator[Path]:
    """A folder that becomes `target` on success and vanishes otherwise."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(nbytes, target.parent)
        partial = Path(tempfile.mkdtemp(".partial", f".{target.name}.", target.parent))
        try:
            yield partial
            os.chmod(partial, 0o755)  # mkdtemp's 0700 is for secrets
            _sync(partial)
            _move_into_place(partial, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as cause:
        raise BundleError(f"cannot write {target}: {cause.strerror or cause}") from cause


def _fill(folder: Path, contents: Contents) -> None:
    files, tensors = {}, {}
    if contents.tokenizer_file is not None:
        data = read_small_file(contents.tokenizer_file, TokenizerError)
        _write(folder / TOKENIZER_FILE, data)
        files[TOKENIZER_FILE] = FileRecord(len(data), hashlib.sha256(data).hexdigest())
    with SafetensorsWriter(folder / WEIGHTS_FILE, contents.layouts, WEIGHTS_METADATA) as writer:
        for layout in writer.order:
            stream = _Stream(contents.chunks(layout))
            writer.write(layout.name, stream)
            tensors[layout.name] = TensorRecord(layout.dtype, layout.shape, stream.crc32)
    size = (folder / WEIGHTS_FILE).stat().st_size
    description = Description(
        model=contents.model,
        contract=contents.contract,
        tensors=tensors,
        files={WEIGHTS_FILE: FileRecord(size, writer.sha256), **files},
        provenance=contents.provenance,
        compute=contents.compute,
        codes=contents.codes,
    )
    text = json.dumps(description.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    _write(folder / DESCRIPTION_FILE, text.encode("utf-8") + b"\n")


class _Counter:
    """Progress over all bytes that will be read: the source's digests, then its live tensors."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0
        self._total = sum(path.stat().st_size for path in _source_files(checkpoint))
        self._total += sum(entry.nbytes for entry in checkpoint.tensors.values())

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


class _Stream:
    """A tensor's bytes; `crc32` is theirs once all have been taken."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self.crc32 = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.crc32 = zlib.crc32(chunk, self.crc32)
            yield chunk


def _converted(entry: TensorEntry, dtype: str, counter: _Counter) -> Iterator[bytes]:
    """A tensor's bytes, in chunks and in `dtype`."""

    def counted() -> Iterator[bytes]:
        for chunk in iter_tensor_bytes(entry):
            counter.add(len(chunk))
            yield chunk

    return convert_chunks(counted(), entry.dtype, dtype, entry.name)


def _source_files(checkpoint: Checkpoint) -> list[Path]:
    """What the bundle was made from: weights, configuration, processors."""
    entries = [*checkpoint.tensors.values(), *checkpoint.dead.values()]
    named = ("config.json", "vlm_config.json", PREPROCESSOR, POSTPROCESSOR)
    paths = {entry.path for entry in entries} | {checkpoint.path / name for name in named}
    return sorted(path for path in paths if path.is_file())


def _source_digests(checkpoint: Checkpoint, counter: _Counter) -> dict[str, str]:
    digests = {}
    for path in _source_files(checkpoint):
        digest = hashlib.sha256()
        for chunk in file_chunks(path):
            digest.update(chunk)
            counter.add(len(chunk))
        digests[path.name] = digest.hexdigest()
    return digests


def check_target(target: Path, force: bool) -> None:
    """Raises BundleError for what may not be (re)placed; before the work, not after it."""
    if not os.path.lexists(target):
        return
    if not force:
        raise BundleError(f"{target} exists: choose another name, or pass --force to replace it")
    if target.is_symlink() or not is_bundle(target):
        raise BundleError(
            f"{target} is not a bundle, so --force does not replace it: expected a directory with "
            f"{DESCRIPTION_FILE}. Remove it yourself if it is not needed"
        )


def _check_space(nbytes: int, folder: Path) -> None:
    needed = nbytes + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BundleError(
            f"{folder} has {free >> 20} MiB free, the bundle needs {needed >> 20} MiB. Free some "
            "space or write it elsewhere"
        )


def _move_into_place(partial: Path, target: Path) -> None:
    """Rename, with an old bundle stepping aside first and back again if the rename fails."""
    if not os.path.lexists(target):
        os.rename(partial, target)
        return
    aside = Path(tempfile.mkdtemp(".old", f".{target.name}.", target.parent))
    os.rename(target, aside / target.name)
    try:
        os.rename(partial, target)
    except OSError:
        with contextlib.suppress(OSError):
            os.rename(aside / target.name, target)
            os.rmdir(aside)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

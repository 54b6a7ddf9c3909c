"""The bundle on disk: everything a robot needs to run one policy, in one directory, offline.

    bundle.json          the description                          (bundle_format.py)
    model.safetensors    live tensors, canonical names, each in its own dtype (precision.py)
    tokenizer.json
    presets.json         optional: plans measured on this bundle  (presets.py)

Writing streams tensor by tensor into a temporary sibling that is renamed at the end, so a bundle
is there completely or not at all. Reading checks structure, small files and sizes at once;
`verify_tensors` checks every tensor's checksum and is part of each load; `verify_files` adds the
full SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolvla_edge.bundle_format import (
    DESCRIPTION_FILE,
    MAX_DESCRIPTION_BYTES,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    WEIGHTS_METADATA,
    Description,
    FileRecord,
    TensorRecord,
    parse_description,
)
from smolvla_edge.config import ModelConfig
from smolvla_edge.contract import Contract
from smolvla_edge.errors import BundleError, TokenizerError
from smolvla_edge.paths import shown
from smolvla_edge.precision import CONVERT_DTYPES, convert_chunks, stored_dtype
from smolvla_edge.processors import POSTPROCESSOR, PREPROCESSOR
from smolvla_edge.safetensors_file import (
    CHUNK_BYTES,
    SafetensorsFile,
    SafetensorsWriter,
    TensorEntry,
    TensorLayout,
    iter_tensor_bytes,
)
from smolvla_edge.strict_json import read_json_object, read_small_file
from smolvla_edge.tokenizer import TaskTokenizer
from smolvla_edge.version import __version__

if TYPE_CHECKING:
    from smolvla_edge.checkpoint import Checkpoint

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_SPARE_BYTES = 64 << 20  # left free on the disk beside the bundle
_CHECK_BYTES = 1 << 20
_CHECK_THREADS = 4  # reading and CRC-32 both release the GIL; more would only queue at the disk


@dataclass(frozen=True)
class Bundle:
    """A bundle whose structure has been checked; tensors are described, not loaded."""

    path: Path
    model: ModelConfig
    contract: Contract
    tensors: dict[str, TensorEntry]  # canonical names
    tokenizer_file: Path | None
    provenance: Mapping[str, Any]
    digest: str
    compute: str  # the arithmetic of bfloat16 weights
    precision: Mapping[str, Mapping[str, int]]
    files: Mapping[str, FileRecord] = field(repr=False)
    checksums: Mapping[str, int] = field(repr=False)  # CRC-32 by tensor name

    def verify_tensors(
        self, progress: Progress | None = None, only: Iterable[str] | None = None
    ) -> None:
        """Compare every tensor, or those named, with its checksum.

        Raises BundleError naming the damaged ones.
        """
        names = list(self.tensors if only is None else only)
        total = sum(self.tensors[name].nbytes for name in names)
        done, damaged = 0, []
        with ThreadPoolExecutor(_CHECK_THREADS) as pool:
            for name, checksum in pool.map(self._checksum, names):
                if checksum != self.checksums[name]:
                    damaged.append(name)
                done += self.tensors[name].nbytes
                if progress is not None:
                    progress(done, total)
        if damaged:
            raise BundleError(
                f"{self.path / WEIGHTS_FILE}: {len(damaged)} tensors do not match their checksums: "
                f"{', '.join(damaged[:8])}. The file is damaged: copy the bundle again"
            )

    def verify_files(self, progress: Progress | None = None) -> None:
        """Compare every file with its SHA-256. Raises BundleError."""
        total = sum(record.nbytes for record in self.files.values())
        done = 0
        for name, record in self.files.items():
            digest = hashlib.sha256()
            for chunk in _file_chunks(self.path / name):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(min(done, total), total)
            _compare_sha256(self.path / name, digest.hexdigest(), record)

    def _checksum(self, name: str) -> tuple[str, int]:
        checksum = 0
        for chunk in iter_tensor_bytes(self.tensors[name], _CHECK_BYTES, BundleError):
            checksum = zlib.crc32(chunk, checksum)
        return name, checksum


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a directory that says it is a bundle (nothing is checked yet)."""
    return (Path(path) / DESCRIPTION_FILE).is_file()


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """The bundle in the directory `path`, structure and small files checked.

    Raises BundleError for anything missing, unknown, inconsistent or outside the directory.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(f"{folder}: expected a bundle directory, found nothing of that kind")
    _regular_file(folder, DESCRIPTION_FILE)
    raw = read_json_object(folder / DESCRIPTION_FILE, BundleError, MAX_DESCRIPTION_BYTES)
    description = parse_description(raw, str(folder / DESCRIPTION_FILE))
    for name, record in description.files.items():
        size = _regular_file(folder, name)
        if size != record.nbytes:
            raise BundleError(
                f"{folder / name}: expected {record.nbytes} bytes, got {size}: the file was cut "
                "short or replaced. Copy the bundle again"
            )
    tokenizer = None
    if TOKENIZER_FILE in description.files:
        tokenizer = folder / TOKENIZER_FILE
        digest = hashlib.sha256()
        for chunk in _file_chunks(tokenizer):
            digest.update(chunk)
        _compare_sha256(tokenizer, digest.hexdigest(), description.files[TOKENIZER_FILE])
    return Bundle(
        path=folder,
        model=description.model,
        contract=description.contract,
        tensors=_open_tensors(folder / WEIGHTS_FILE, description.tensors),
        tokenizer_file=tokenizer,
        provenance=description.provenance,
        digest=description.digest,
        compute=description.compute,
        precision=description.precision(),
        files=description.files,
        checksums={name: record.crc32 for name, record in description.tensors.items()},
    )


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
    _check_target(target, force)
    if checkpoint.tokenizer_file is None and not allow_no_tokenizer:
        raise TokenizerError(
            f"{checkpoint.path}: no tokenizer.json was found, and a bundle must run offline. Pass "
            "--tokenizer FILE"
        )
    if checkpoint.tokenizer_file is not None:  # found out now, not on the robot
        TaskTokenizer(checkpoint.tokenizer_file, checkpoint.contract.tokenizer)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(checkpoint, target.parent)
        partial = Path(tempfile.mkdtemp(".partial", f".{target.name}.", target.parent))
        try:
            _fill(partial, checkpoint, _Counter(checkpoint, progress), dtype, command)
            os.chmod(partial, 0o755)  # mkdtemp's 0700 is for secrets
            _sync(partial)
            _move_into_place(partial, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as cause:
        raise BundleError(f"cannot write {target}: {cause.strerror or cause}") from cause
    return read_bundle(target)


def _fill(
    folder: Path, checkpoint: Checkpoint, counter: _Counter, dtype: str, command: str | None
) -> None:
    source = _source_digests(checkpoint, counter)
    files, tensors = {}, {}
    if checkpoint.tokenizer_file is not None:
        data = read_small_file(checkpoint.tokenizer_file, TokenizerError)
        _write(folder / TOKENIZER_FILE, data)
        files[TOKENIZER_FILE] = FileRecord(len(data), hashlib.sha256(data).hexdigest())
    cross = checkpoint.model.cross_expert_layers()
    layouts = [
        TensorLayout(name, stored_dtype(name, entry, cross, dtype), entry.shape)
        for name, entry in checkpoint.tensors.items()
    ]
    with SafetensorsWriter(folder / WEIGHTS_FILE, layouts, WEIGHTS_METADATA) as writer:
        for layout in writer.order:
            stream = _Stream(checkpoint.tensors[layout.name], layout.dtype, counter)
            writer.write(layout.name, stream)
            tensors[layout.name] = TensorRecord(layout.dtype, layout.shape, stream.crc32)
    size = (folder / WEIGHTS_FILE).stat().st_size
    description = Description(
        model=checkpoint.model,
        contract=checkpoint.contract,
        tensors=tensors,
        files={WEIGHTS_FILE: FileRecord(size, writer.sha256), **files},
        provenance={
            **checkpoint.provenance,
            "source_sha256": source,
            "converter": f"smolvla-edge {__version__}",
            "command": None if command is None else shown(command),
        },
        compute="float32" if dtype == "keep" else "bfloat16",
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
    """A tensor's bytes, in chunks and in `dtype`; `crc32` is theirs once all have been taken."""

    def __init__(self, entry: TensorEntry, dtype: str, counter: _Counter) -> None:
        self._entry = entry
        self._dtype = dtype
        self._counter = counter
        self.crc32 = 0

    def _counted(self) -> Iterator[bytes]:
        for chunk in iter_tensor_bytes(self._entry):
            self._counter.add(len(chunk))
            yield chunk

    def __iter__(self) -> Iterator[bytes]:
        entry = self._entry
        for chunk in convert_chunks(self._counted(), entry.dtype, self._dtype, entry.name):
            self.crc32 = zlib.crc32(chunk, self.crc32)
            yield chunk


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
        for chunk in _file_chunks(path):
            digest.update(chunk)
            counter.add(len(chunk))
        digests[path.name] = digest.hexdigest()
    return digests


def _open_tensors(path: Path, records: Mapping[str, TensorRecord]) -> dict[str, TensorEntry]:
    """The tensors of the weights file, which must be exactly those described."""
    file = SafetensorsFile(path, BundleError)
    if file.metadata != WEIGHTS_METADATA:
        raise BundleError(
            f"{path}: expected metadata {WEIGHTS_METADATA}, got {file.metadata!r:.80}"
        )
    if file.entries.keys() != records.keys():
        missing = sorted(records.keys() - file.entries.keys())[:8]
        unknown = sorted(file.entries.keys() - records.keys())[:8]
        raise BundleError(f"{path}: missing tensors {missing}, unknown tensors {unknown}")
    for name, record in records.items():
        entry = file.entries[name]
        if (entry.dtype, entry.shape) != (record.dtype, record.shape):
            raise BundleError(
                f"{path}: {name}: bundle.json says {record.dtype} {list(record.shape)}, the file "
                f"{entry.dtype} {list(entry.shape)}"
            )
    return {name: file.entries[name] for name in records}


def _regular_file(folder: Path, name: str) -> int:
    """Size of a regular file that really lies inside `folder`. Raises BundleError."""
    path = folder / name
    try:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            resolved = path.resolve(strict=True)
            if not resolved.is_relative_to(folder.resolve()):
                raise BundleError(
                    f"{path} is a link to {resolved}, outside the bundle: expected a file. Copy "
                    "the bundle with its files (cp -rL)"
                )
            info = resolved.stat()
    except (OSError, RuntimeError) as cause:  # RuntimeError: a loop of links
        raise BundleError(
            f"{path} is missing or unreadable ({cause}). Copy the bundle again"
        ) from cause
    if not stat.S_ISREG(info.st_mode):
        raise BundleError(f"{path}: expected a regular file")
    return info.st_size


def _check_target(target: Path, force: bool) -> None:
    if not os.path.lexists(target):
        return
    if not force:
        raise BundleError(f"{target} exists: choose another name, or pass --force to replace it")
    if target.is_symlink() or not is_bundle(target):
        raise BundleError(
            f"{target} is not a bundle, so --force does not replace it: expected a directory with "
            f"{DESCRIPTION_FILE}. Remove it yourself if it is not needed"
        )


def _check_space(checkpoint: Checkpoint, folder: Path) -> None:
    needed = sum(entry.nbytes for entry in checkpoint.tensors.values()) + _SPARE_BYTES
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


def _file_chunks(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as cause:
        raise BundleError(f"cannot read {path}: {cause.strerror or cause}") from cause


def _compare_sha256(path: Path, digest: str, record: FileRecord) -> None:
    if digest != record.sha256:
        raise BundleError(
            f"{path}: expected SHA-256 {record.sha256}, got {digest}: damaged or replaced. Copy "
            "the bundle again"
        )

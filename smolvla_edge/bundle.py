"""The bundle on disk: everything a robot needs to run one policy, in one directory, offline.

    bundle.json          the description                          (bundle_format.py)
    model.safetensors    live tensors, canonical names, each in its own dtype (precision.py)
    tokenizer.json
    presets.json         optional: plans measured on this bundle  (presets.py)

bundle_writer.py writes it. Reading checks structure, small files and sizes at once;
`verify_tensors` checks every tensor's checksum and is part of each load; `verify_files` adds the
full SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import stat
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
    FileRecord,
    TensorRecord,
    parse_description,
)
from smolvla_edge.codes import CodeFormat
from smolvla_edge.config import ModelConfig
from smolvla_edge.contract import Contract
from smolvla_edge.errors import BundleError, SmolVLAEdgeError
from smolvla_edge.safetensors_file import (
    CHUNK_BYTES,
    SafetensorsFile,
    TensorEntry,
    iter_tensor_bytes,
)
from smolvla_edge.strict_json import read_json_object

if TYPE_CHECKING:
    pass

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
    codes: Mapping[str, CodeFormat]  # of weights stored as integers
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
            for chunk in file_chunks(self.path / name):
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
    regular_file(folder, DESCRIPTION_FILE)
    raw = read_json_object(folder / DESCRIPTION_FILE, BundleError, MAX_DESCRIPTION_BYTES)
    description = parse_description(raw, str(folder / DESCRIPTION_FILE))
    for name, record in description.files.items():
        size = regular_file(folder, name)
        if size != record.nbytes:
            raise BundleError(
                f"{folder / name}: expected {record.nbytes} bytes, got {size}: the file was cut "
                "short or replaced. Copy the bundle again"
            )
    tokenizer = None
    if TOKENIZER_FILE in description.files:
        tokenizer = folder / TOKENIZER_FILE
        _compare_sha256(tokenizer, sha256_of(tokenizer), description.files[TOKENIZER_FILE])
    return Bundle(
        path=folder,
        model=description.model,
        contract=description.contract,
        tensors=_open_tensors(folder / WEIGHTS_FILE, description.tensors),
        tokenizer_file=tokenizer,
        provenance=description.provenance,
        digest=description.digest,
        compute=description.compute,
        codes=description.codes,
        precision=description.precision(),
        files=description.files,
        checksums={name: record.crc32 for name, record in description.tensors.items()},
    )


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


def regular_file(
    folder: Path, name: str, error: type[SmolVLAEdgeError] = BundleError, kind: str = "bundle"
) -> int:
    """Size of a regular file that really lies inside `folder`, a bundle or other `kind`; `error`
    otherwise."""
    path = folder / name
    try:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            resolved = path.resolve(strict=True)
            if not resolved.is_relative_to(folder.resolve()):
                raise error(
                    f"{path} is a link to {resolved}, outside the {kind}: expected a file. Copy "
                    f"the {kind} with its files (cp -rL)"
                )
            info = resolved.stat()
    except (OSError, RuntimeError) as cause:  # RuntimeError: a loop of links
        raise error(f"{path} is missing or unreadable ({cause}). Copy the {kind} again") from cause
    if not stat.S_ISREG(info.st_mode):
        raise error(f"{path}: expected a regular file")
    return info.st_size


def file_chunks(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as cause:
        raise BundleError(f"cannot read {path}: {cause.strerror or cause}") from cause


def sha256_of(path: Path) -> str:
    """Of a file, read in pieces. Raises BundleError when it cannot be read."""
    digest = hashlib.sha256()
    for chunk in file_chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _compare_sha256(path: Path, digest: str, record: FileRecord) -> None:
    if digest != record.sha256:
        raise BundleError(
            f"{path}: expected SHA-256 {record.sha256}, got {digest}: damaged or replaced. Copy "
            "the bundle again"
        )

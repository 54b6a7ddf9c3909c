"""`bundle.json`: the one description of a bundle, written once and believed never.

    format, version   what this file is
    digest            SHA-256 of what computes, all below but provenance (canonical JSON): the
                      bundle's identity; two conversions of one checkpoint have the same
    model             ModelConfig: every dimension
    contract          cameras, features, statistics, renames, tokenizer rules
    compute           the arithmetic of bfloat16 weights: float32 or bfloat16 (precision.py)
    codes             weights stored as integer codes -> bits, group_size, input_scale (codes.py)
    precision         how many tensors of each dtype or code format, by part
    tensors           name -> dtype, shape, crc32
    files             name -> bytes, sha256
    provenance        source, its digests, converter, command

Two kinds of checksum, for two questions. CRC-32 of each tensor: was this read as it was written? It
runs at 7 GB/s on a desktop core, so every load can afford it, tensor by tensor. SHA-256 of each
file: is this the bundle that was published? That is `verify`'s work for the weights; the small
files and this one are always checked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

from smolvla_edge.codes import (
    INPUT_SCALE,
    SCALE,
    CodeFormat,
    formats_json,
    may_be_codes,
    stacked_with,
)
from smolvla_edge.config import ModelConfig
from smolvla_edge.contract import Contract
from smolvla_edge.errors import (
    BundleError,
    CheckpointError,
    ContractError,
    QuantizationError,
    SmolVLAEdgeError,
)
from smolvla_edge.names import WEIGHT_DTYPES, expected_tensors
from smolvla_edge.precision import COMPUTE

FORMAT = "smolvla-edge bundle"
VERSION = 3  # written; 1 without `compute` (it was float32) and 2 without `codes` are read
DESCRIPTION_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
WEIGHTS_METADATA = {"format": FORMAT}
MAX_DESCRIPTION_BYTES = 16 << 20
PARTS = ("vision", "connector", "text", "expert", "heads")

_KEYS_1 = frozenset(
    {"format", "version", "digest", "model", "contract", "precision", "tensors", "files"}
    | {"provenance"}
)
_KEYS = {1: _KEYS_1, 2: _KEYS_1 | {"compute"}, 3: _KEYS_1 | {"compute", "codes"}}
_HEX = {"sha256": re.compile(r"[0-9a-f]{64}"), "crc32": re.compile(r"[0-9a-f]{8}")}


@dataclass(frozen=True)
class TensorRecord:
    dtype: str
    shape: tuple[int, ...]
    crc32: int


@dataclass(frozen=True)
class FileRecord:
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """A bundle.json that has been checked against itself, but not yet against the files."""

    model: ModelConfig
    contract: Contract
    tensors: Mapping[str, TensorRecord]
    files: Mapping[str, FileRecord]
    provenance: Mapping[str, Any]
    compute: str = "float32"
    codes: Mapping[str, CodeFormat] = field(default_factory=dict)
    digest: str = ""

    def precision(self) -> dict[str, dict[str, int]]:
        return precision_map(
            ((name, record.dtype) for name, record in self.tensors.items()), self.codes
        )

    def to_json(self) -> dict[str, Any]:
        """The document, with its digest computed anew."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model.to_dict(),
            "contract": self.contract.to_json(),
            "compute": self.compute,
            "codes": formats_json(self.codes),
            "precision": self.precision(),
            "tensors": {
                name: {
                    "dtype": record.dtype,
                    "shape": list(record.shape),
                    "crc32": f"{record.crc32:08x}",
                }
                for name, record in self.tensors.items()
            },
            "files": {
                name: {"bytes": record.nbytes, "sha256": record.sha256}
                for name, record in self.files.items()
            },
            "provenance": dict(self.provenance),
        }
        return {**body, "digest": digest_of(body)}


def precision_map(
    tensors: Iterable[tuple[str, str]], codes: Mapping[str, CodeFormat] = MappingProxyType({})
) -> dict[str, dict[str, int]]:
    """{part: {dtype or code format: how many tensors}} of (name, dtype) pairs."""
    counts: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    for name, dtype in tensors:
        if name.endswith((SCALE, INPUT_SCALE)):
            continue
        part = name.partition(".")[0]
        kind = codes[name].name if name in codes else dtype
        counts[part if part in counts else "heads"][kind] += 1
    return {part: dict(sorted(count.items())) for part, count in counts.items()}


def digest_of(body: Mapping[str, Any]) -> str:
    """SHA-256 of a document without digest and provenance; layout and key order do not matter."""
    text = json.dumps(
        {name: value for name, value in body.items() if name not in ("digest", "provenance")},
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def parse_description(data: Mapping[str, Any], where: str) -> Description:
    """The checked description. Raises BundleError naming the field."""

    def refuse(reason: str) -> NoReturn:
        raise BundleError(f"{where}: {reason}")

    if data.get("format") != FORMAT:
        refuse(f"expected format {FORMAT!r}, got {data.get('format')!r:.80}: not a bundle")
    version = data.get("version")
    if type(version) is not int or version not in _KEYS:
        refuse(
            f"expected format version 1 to {VERSION}, got {version!r:.40}: convert the checkpoint "
            "again, or install the release of smolvla-edge that wrote it"
        )
    keys = _KEYS[version]
    if data.keys() != keys:
        missing, unknown = sorted(keys - data.keys()), sorted(data.keys() - keys)
        refuse(f"missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
    if data["digest"] != digest_of(data):
        refuse(
            "its contents do not match its digest: the file was damaged or edited. Copy it again; "
            "to change statistics or names use --stats and --rename"
        )
    compute = data.get("compute", "float32")
    if compute not in COMPUTE:
        refuse(f"compute: expected one of {', '.join(COMPUTE)}, got {compute!r:.40}")
    try:
        model = ModelConfig.from_dict(_object(data["model"], "model"))
        contract = Contract.from_json(data["contract"])
    except (CheckpointError, ContractError) as cause:
        raise BundleError(f"{where}: {cause}") from cause
    check_agreement(model, contract, where)
    codes = _codes(data.get("codes", {}), where)
    description = Description(
        model=model,
        contract=contract,
        tensors=_tensors(data["tensors"], model, codes, where),
        files=_files(data["files"], where),
        provenance=_object(data["provenance"], f"{where}: provenance"),
        compute=compute,
        codes=codes,
        digest=data["digest"],
    )
    if data["precision"] != description.precision():
        refuse(f"precision {data['precision']!r:.200} is not what its tensors are")
    return description


def check_agreement(
    model: ModelConfig,
    contract: Contract,
    where: str,
    error: type[SmolVLAEdgeError] = BundleError,
) -> None:
    """Numbers that stand in both must be the same, or engine and checks would disagree."""
    names = ("state_dim", "action_dim", "max_state_dim", "max_action_dim")
    pairs = [
        (name, getattr(model, name), getattr(contract, name))
        for name in (*names, "chunk_size", "n_action_steps", "num_steps")
    ]
    pairs.append(("max_cameras", model.max_cameras, len(contract.cameras)))
    for name, ours, theirs in pairs:
        if ours != theirs:
            raise error(f"{where}: model says {name} {ours}, contract says {theirs}")
    if contract.tokenizer.max_length > model.tokenizer_max_length:
        raise error(
            f"{where}: the contract allows {contract.tokenizer.max_length} tokens, the model "
            f"{model.tokenizer_max_length}"
        )


def _codes(raw: object, where: str) -> dict[str, CodeFormat]:
    codes = {}
    for name, item in _object(raw, f"{where}: codes").items():
        fields = _object(item, f"{where}: codes: {name}", {"bits", "group_size", "input_scale"})
        try:
            codes[name] = CodeFormat(fields["bits"], fields["group_size"], fields["input_scale"])
        except QuantizationError as cause:
            raise BundleError(f"{where}: {name}: {cause}") from cause
    return codes


def stored_layouts(
    model: ModelConfig, codes: Mapping[str, CodeFormat], where: str
) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Exactly the tensors of a bundle: name -> the dtypes it may have, and its shape.

    Raises BundleError for codes of a tensor that is no matrix of the model, and for stacked weights
    of different formats.
    """
    specs = {name: spec.shape for name, spec in expected_tensors(model).items() if not spec.dead}
    stored: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        name: (WEIGHT_DTYPES, shape) for name, shape in specs.items()
    }
    together: dict[str, CodeFormat | None] = {}
    cross = model.cross_expert_layers()
    for name, shape in specs.items():
        form = codes.get(name)
        if together.setdefault(stacked_with(name, cross), form) != form:
            raise BundleError(
                f"{where}: codes: {name}: expected the format of the weights it is computed with"
            )
        if form is None:
            continue
        if not may_be_codes(name, shape, form):
            raise BundleError(f"{where}: codes: {name} cannot be stored as {form.name}")
        for layout in form.layouts(name, shape):
            stored[layout.name] = ((layout.dtype,), layout.shape)
    if unknown := sorted(codes.keys() - specs.keys()):
        raise BundleError(f"{where}: codes of unknown tensors {unknown[:8]}")
    return stored


def _tensors(
    raw: object, model: ModelConfig, codes: Mapping[str, CodeFormat], where: str
) -> dict[str, TensorRecord]:
    """Exactly the live tensors of the model, each with its shape."""
    fields = _object(raw, f"{where}: tensors")
    stored = stored_layouts(model, codes, where)
    if fields.keys() != stored.keys():
        missing, unknown = (
            sorted(stored.keys() - fields.keys()),
            sorted(fields.keys() - stored.keys()),
        )
        raise BundleError(f"{where}: tensors: missing {missing[:8]}, unknown {unknown[:8]}")
    records = {}
    for name, item in fields.items():
        item = _object(item, f"{where}: tensors: {name}", {"dtype", "shape", "crc32"})
        dtypes, shape = stored[name]
        if item["dtype"] not in dtypes:
            raise BundleError(
                f"{where}: {name}: expected dtype of {', '.join(dtypes)}, got {item['dtype']!r:.40}"
            )
        if item["shape"] != list(shape) or not all(type(size) is int for size in item["shape"]):
            raise BundleError(
                f"{where}: {name}: expected shape {list(shape)}, got {item['shape']!r:.80}"
            )
        crc = _hex(item, "crc32", f"{where}: {name}")
        records[name] = TensorRecord(item["dtype"], shape, int(crc, 16))
    return records


def _files(raw: object, where: str) -> dict[str, FileRecord]:
    fields = _object(raw, f"{where}: files")
    known = {WEIGHTS_FILE, TOKENIZER_FILE}
    if not {WEIGHTS_FILE} <= fields.keys() <= known:
        raise BundleError(
            f"{where}: files: expected {WEIGHTS_FILE} and perhaps {TOKENIZER_FILE}, directly in "
            f"the bundle, got {sorted(fields)!r:.200}"
        )
    records = {}
    for name, raw_file in fields.items():
        item = _object(raw_file, f"{where}: files: {name}", {"bytes", "sha256"})
        if type(item["bytes"]) is not int or not 0 <= item["bytes"] < 1 << 63:
            raise BundleError(f"{where}: {name}: expected a size, got {item['bytes']!r:.40}")
        records[name] = FileRecord(item["bytes"], _hex(item, "sha256", f"{where}: {name}"))
    return records


def _hex(item: Mapping[str, Any], kind: str, where: str) -> str:
    value = item[kind]
    if not isinstance(value, str) or not _HEX[kind].fullmatch(value):
        raise BundleError(f"{where}: expected {kind} as lower-case hex digits, got {value!r:.80}")
    return value


def _object(raw: object, where: str, keys: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(raw, dict) or (keys is not None and raw.keys() != keys):
        shape = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
        expected = f"an object of {sorted(keys)}" if keys else "an object"
        raise BundleError(f"{where}: expected {expected}, got {shape!r:.200}")
    return raw

"""An ONNX export folder: the graphs of one policy, their weights, and what they expect.

    export.json                                      the manifest              (onnx_manifest.py)
    vision.onnx  prefix.onnx  flow.onnx  policy.onnx     graphs; letterbox.onnx where it resizes
    vision.weights  prefix.weights  flow.weights     what the graphs name as external data
    tokenizer.json  VERIFICATION.json  CARD.md

ONNX Runtime opens every file that a graph names. So before it sees a graph, each tensor in it is
held to the manifest's files (onnx_wire.py), and each operator to the domains that are known here.
Reading checks the manifest, sizes, the graphs and the tokenizer; `verify_files` adds the SHA-256 of
the weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from smolvla_edge.bundle import Progress, file_chunks, regular_file
from smolvla_edge.bundle_format import TOKENIZER_FILE
from smolvla_edge.errors import BackendError, BundleError, ExportError, PlanError
from smolvla_edge.onnx_manifest import (
    GRAPHS,
    MANIFEST_FILE,
    FileRecord,
    Graph,
    Manifest,
    Port,
    write_manifest,
)
from smolvla_edge.onnx_wire import ModelFacts, scan_model
from smolvla_edge.plan import Plan
from smolvla_edge.plan_words import write_words
from smolvla_edge.strict_json import read_json_object, read_small_file

__all__ = [
    "CUSTOM_DOMAIN",
    "EXPORTED",
    "EXPORT_FOLDER",
    "MANIFEST_FILE",
    "ExportFolder",
    "FileRecord",
    "Graph",
    "Manifest",
    "Port",
    "describe_files",
    "is_export",
    "read_export",
    "write_manifest",
]

EXPORT_FOLDER = "onnx"  # of a bundle, unless another place was asked for
EXPORTED = "exported"  # the preset of every folder: its own plan
CUSTOM_DOMAIN = "smolvla_edge"
DOMAINS = frozenset({"", "ai.onnx", "com.microsoft", CUSTOM_DOMAIN})
MAX_MANIFEST_BYTES = 16 << 20
MAX_GRAPH_BYTES = 64 << 20  # without its weights; the largest honest one has a few MB
# What reads a file of its own choice, and what may change the options of a session.
_REACH_OUT = frozenset({("com.microsoft", "EPContext")})
_OPTIONS = "ort_config"


@dataclass(frozen=True)
class ExportFolder:
    """A folder whose structure has been checked; no graph is loaded."""

    path: Path
    manifest: Manifest

    @property
    def tokenizer_file(self) -> Path | None:
        return self.path / TOKENIZER_FILE if TOKENIZER_FILE in self.manifest.files else None

    def graph_file(self, name: str) -> Path:
        return self.path / self.manifest.graphs[name].file

    def check_target(self) -> None:
        """Raises BackendError for graphs that were made for another runtime than ours."""
        if self.manifest.target != "onnxruntime":
            raise BackendError(
                f"{self.path} was exported for {self.manifest.target}: expected target "
                "onnxruntime. Build engines of it with trtexec (docs/jetson.md), or export the "
                "bundle again with --target onnxruntime, which device 'tensorrt' runs too"
            )

    def check_plan(self, plan: Plan) -> None:
        """Raises PlanError for a plan that leaves out other layers than the graphs do, BackendError
        as `check_target` does."""
        self.check_target()
        exported, steps = self.manifest.plan, self.manifest.model.num_steps
        if plan.skip.reuse:
            raise PlanError(
                "skip.reuse: expected none, because a step of the exported flow cannot know "
                "what the last one added; remove it from the plan, or use backend 'native'"
            )
        self._check_sizes(plan)
        if (plan.skip, plan.exit) == (exported.skip, exported.exit):
            return
        theirs, asked = (
            write_words(Plan(steps=steps, skip=p.skip, exit=p.exit), steps)
            for p in (exported, plan)
        )
        raise PlanError(
            f"{self.path} was exported for the layers of {theirs!r}, and holds no others: got "
            f"{asked!r}. Pass plan={EXPORTED!r} to run it as it was exported, or export the bundle "
            "again for this plan"
        )

    def _check_sizes(self, plan: Plan) -> None:
        """Where the flow is of a fixed size, the plan is of it too."""
        flow = self.manifest.graphs["flow"]
        rows = plan.rows(self.manifest.model.chunk_size)
        for name, port, asked in (("steps", "schedule", plan.steps), ("horizon", "noise", rows)):
            size = flow.input(port).shape[0]
            if isinstance(size, int) and size != asked:
                raise PlanError(
                    f"{self.path} was exported for {name}={size} alone, got {asked}. Change the "
                    f"plan, or export the bundle again with {name} left free"
                )

    def verify_files(self, progress: Progress | None = None) -> None:
        """Compare every file with its SHA-256. Raises ExportError."""
        total = sum(record.nbytes for record in self.manifest.files.values())
        done = 0
        for name, record in self.manifest.files.items():
            digest = hashlib.sha256()
            for chunk in _chunks(self.path / name):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(min(done, total), total)
            _compare(self.path / name, digest.hexdigest(), record)


def is_export(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a directory that says it is an export folder (nothing is checked yet)."""
    return (Path(path) / MANIFEST_FILE).is_file()


def read_export(path: str | os.PathLike[str]) -> ExportFolder:
    """The export folder `path`, all but its weights checked.

    Raises ExportError for anything missing, unknown, inconsistent or outside the directory.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ExportError(f"{folder}: expected an export folder, found nothing of that kind")
    regular_file(folder, MANIFEST_FILE, ExportError, "export folder")
    raw = read_json_object(folder / MANIFEST_FILE, ExportError, MAX_MANIFEST_BYTES)
    manifest = Manifest.from_json(raw, str(folder / MANIFEST_FILE))
    for name, record in manifest.files.items():
        size = regular_file(folder, name, ExportError, "export folder")
        if size != record.nbytes:
            raise ExportError(
                f"{folder / name}: expected {record.nbytes} bytes, got {size}: the file was cut "
                "short or replaced. Copy the export folder again"
            )
    for name in GRAPHS:
        if name in manifest.graphs:
            _check_graph(folder / manifest.graphs[name].file, manifest)
    if TOKENIZER_FILE in manifest.files:
        tokenizer = read_small_file(folder / TOKENIZER_FILE, ExportError)
        _check_bytes(folder / TOKENIZER_FILE, tokenizer, manifest)
    return ExportFolder(folder, manifest)


def describe_files(folder: Path, names: Iterable[str] | None = None) -> dict[str, FileRecord]:
    """What the manifest says of the files of a finished folder: all but export.json itself, or
    those named."""
    if names is None:
        names = [path.name for path in folder.iterdir() if path.name != MANIFEST_FILE]
    records = {}
    for name in sorted(names):
        size = regular_file(folder, name, ExportError, "export folder")
        digest = hashlib.sha256()
        for chunk in _chunks(folder / name):
            digest.update(chunk)
        records[name] = FileRecord(size, digest.hexdigest())
    return records


def _check_graph(path: Path, manifest: Manifest) -> None:
    """A graph is of the versions it should be, and names nothing outside the folder."""
    data = read_small_file(path, ExportError, MAX_GRAPH_BYTES)
    facts = scan_model(data, str(path))
    opset = facts.opsets.get("", facts.opsets.get("ai.onnx", 0))
    if (facts.ir, opset) != (manifest.ir, manifest.opset):
        raise ExportError(
            f"{path}: {MANIFEST_FILE} says opset {manifest.opset} and IR {manifest.ir}, the file "
            f"opset {opset} and IR {facts.ir}. Copy the export folder again"
        )
    _check_operators(path, facts)
    for tensor in facts.external:
        record = manifest.files.get(tensor.location)
        if record is None:
            raise ExportError(
                f"{path}: tensor {tensor.tensor!r:.80} lies in {tensor.location!r:.200}: expected "
                f"one of the files of {MANIFEST_FILE}. Do not run this folder; export again"
            )
        if tensor.offset + tensor.length > record.nbytes:
            raise ExportError(
                f"{path}: tensor {tensor.tensor!r:.80} ends at byte "
                f"{tensor.offset + tensor.length} of {tensor.location}, which has {record.nbytes}. "
                "Copy the export folder again"
            )
    _check_bytes(path, data, manifest)


def _check_operators(path: Path, facts: ModelFacts) -> None:
    foreign = sorted(facts.domains - DOMAINS)
    if foreign:
        raise ExportError(
            f"{path}: expected operators of {', '.join(sorted(DOMAINS - {''}))}, got the domains "
            f"{foreign!r:.200}. Export again"
        )
    refused = sorted(name for _, name in facts.operators & _REACH_OUT)
    if refused or _OPTIONS in facts.properties:
        raise ExportError(
            f"{path}: expected a graph of computations alone, got "
            f"{', '.join(refused) or f'the property {_OPTIONS}'}, which may reach other files. Do "
            "not run this folder; export again"
        )


def _check_bytes(path: Path, data: bytes, manifest: Manifest) -> None:
    _compare(path, hashlib.sha256(data).hexdigest(), manifest.files[path.name])


def _compare(path: Path, digest: str, record: FileRecord) -> None:
    if digest != record.sha256:
        raise ExportError(
            f"{path}: expected SHA-256 {record.sha256}, got {digest}: damaged or replaced. Copy "
            "the export folder again"
        )


def _chunks(path: Path) -> Iterable[bytes]:
    try:
        yield from file_chunks(path)
    except BundleError as cause:
        raise ExportError(str(cause)) from cause

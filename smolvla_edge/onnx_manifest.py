"""`export.json`: the one description of an ONNX export folder, written last and believed never.

format, version   what this file is
precision, form   of the weights, and of the nodes that hold integer ones
target            the runtime that the graphs were written for
opset, ir         versions of ONNX that every graph is of
custom_ops        whether there are nodes of our domain, which our library can run
plan              as exported: what it leaves out is not in the graphs
model, contract   as in a bundle
graphs            name -> file, number of nodes, inputs and outputs
files             name -> bytes, sha256: all of the folder that belongs to the export
provenance        source, its digest, precision by part, versions, command
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from smolvla_edge.bundle_format import FileRecord, check_agreement
from smolvla_edge.config import ModelConfig
from smolvla_edge.contract import Contract
from smolvla_edge.errors import CheckpointError, ContractError, ExportError, PlanError
from smolvla_edge.plan import Plan

FORMAT = "smolvla-edge onnx export"
VERSION = 1
MANIFEST_FILE = "export.json"
OPTIONAL_GRAPHS = ("letterbox",)  # absent where the policy does not resize
GRAPHS = (*OPTIONAL_GRAPHS, "vision", "prefix", "flow", "policy")
PRECISIONS = ("float32", "float16", "int8", "int4", "mixed")
FORMS = ("qdq", "matmulnbits", "integer")
TARGETS = ("onnxruntime", "tensorrt")
DTYPES = ("float32", "int64", "bool", "uint8")  # at the border, whatever is inside

_KEYS = frozenset(
    {"format", "version", "precision", "form", "target", "opset", "ir", "custom_ops", "plan"}
    | {"model", "contract", "graphs", "files", "provenance"}
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_RANK, _MAX_TENSORS, _MAX_FILES = 8, 128, 64
_ANY = None  # in a shape: whatever the graph says
_KEYS_VALUES = ("float32", (_ANY, _ANY, "kv"))
# name -> dtype and shape; a word is a size of the model (see `_sizes`). Of `policy`, whose inputs
# have the cameras' names, only what comes out.
_Ports = dict[str, tuple[str, tuple[int | str | None, ...]]]
_INTERFACE: dict[str, tuple[_Ports | None, _Ports]] = {
    "letterbox": (
        {"frames": ("uint8", (_ANY, _ANY, _ANY, 3))},
        {"pixels": ("float32", (_ANY, 3, _ANY, _ANY))},
    ),
    "vision": (
        {"pixels": ("float32", (_ANY, 3, _ANY, _ANY))},
        {"image_tokens": ("float32", (_ANY, _ANY, "text"))},
    ),
    "prefix": (
        {
            "image_tokens": ("float32", (_ANY, _ANY, "text")),
            "camera_mask": ("bool", (_ANY,)),
            "tokens": ("int64", (_ANY,)),
            "token_mask": ("bool", (_ANY,)),
            "state": ("float32", ("state",)),
        },
        {"keys": _KEYS_VALUES, "values": _KEYS_VALUES, "valid": ("bool", (_ANY,))},
    ),
    "flow": (
        {
            "noise": ("float32", (_ANY, "action")),
            "keys": _KEYS_VALUES,
            "values": _KEYS_VALUES,
            "valid": ("bool", (_ANY,)),
            "schedule": ("float32", (_ANY, 5)),
            "pull_target": ("float32", (_ANY, "action")),
            "pull_weights": ("float32", (_ANY,)),
        },
        {"actions": ("float32", (_ANY, "action"))},
    ),
    "policy": (
        None,
        {"actions": ("float32", (_ANY, _ANY)), "normalized": ("float32", (_ANY, _ANY))},
    ),
}
# TensorRT's graphs: frames come letterboxed, and the plan is settled in the flow.
_TENSORRT_GRAPHS = ("vision", "prefix", "flow")
_SETTLED = "schedule"


@dataclass(frozen=True)
class Port:
    """An input or output. shape: numbers, and names of sizes that are free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Graph:
    """One .onnx file. nodes: how many, those of its functions and inner graphs included."""

    file: str
    nodes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def input(self, name: str) -> Port:
        return next(port for port in self.inputs if port.name == name)

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "nodes": self.nodes,
            "inputs": [port.to_json() for port in self.inputs],
            "outputs": [port.to_json() for port in self.outputs],
        }


@dataclass(frozen=True)
class Manifest:
    """An export.json that has been checked against itself, but not yet against the files."""

    precision: str
    form: str
    target: str
    opset: int
    ir: int
    custom_ops: bool
    plan: Plan
    model: ModelConfig
    contract: Contract
    graphs: Mapping[str, Graph]
    files: Mapping[str, FileRecord]
    provenance: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "precision": self.precision,
            "form": self.form,
            "target": self.target,
            "opset": self.opset,
            "ir": self.ir,
            "custom_ops": self.custom_ops,
            "plan": self.plan.to_json(),
            "model": self.model.to_dict(),
            "contract": self.contract.to_json(),
            "graphs": {name: graph.to_json() for name, graph in self.graphs.items()},
            "files": {
                name: {"bytes": record.nbytes, "sha256": record.sha256}
                for name, record in self.files.items()
            },
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Manifest:
        """The inverse of `to_json` for untrusted data. Raises ExportError naming the field."""
        return _Reader(where).manifest(data)


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write export.json, complete or not at all; the last file of a folder, which makes it one.

    Raises ExportError for a manifest that would not be read again.
    """
    path = folder / MANIFEST_FILE
    text = json.dumps(manifest.to_json(), indent=1, allow_nan=False) + "\n"
    Manifest.from_json(json.loads(text), str(path))
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def is_flat(name: object) -> bool:
    """Whether a file name can only be of a file directly in the folder."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and name.isprintable()
        and name not in (".", "..", MANIFEST_FILE)
        and not set(name) & set("/\\:")
    )


class _Reader:
    def __init__(self, where: str) -> None:
        self._where = where

    def refuse(self, reason: str) -> NoReturn:
        raise ExportError(f"{self._where}: {reason}")

    def manifest(self, data: Mapping[str, Any]) -> Manifest:
        if data.get("format") != FORMAT:
            self.refuse(
                f"expected format {FORMAT!r}, got {data.get('format')!r:.80}: not an export folder"
            )
        if type(data.get("version")) is not int or data["version"] != VERSION:
            self.refuse(
                f"expected format version {VERSION}, got {data.get('version')!r:.40}: export the "
                "bundle again (smolvla-edge export), or install the release that wrote it"
            )
        self._object(data, "export.json", _KEYS)
        model, contract, plan = self._policy(data)
        files = self._files(data["files"])
        target = self._choice(data, "target", TARGETS)
        return Manifest(
            precision=self._choice(data, "precision", PRECISIONS),
            form=self._choice(data, "form", FORMS),
            target=target,
            opset=self._integer(data["opset"], "opset", 1, 1000),
            ir=self._integer(data["ir"], "ir", 1, 1000),
            custom_ops=self._boolean(data["custom_ops"], "custom_ops"),
            plan=plan,
            model=model,
            contract=contract,
            graphs=self._graphs(data["graphs"], files, _sizes(model), target),
            files=files,
            provenance=self._provenance(data["provenance"]),
        )

    def _policy(self, data: Mapping[str, Any]) -> tuple[ModelConfig, Contract, Plan]:
        try:
            model = ModelConfig.from_dict(self._object(data["model"], "model"))
            contract = Contract.from_json(data["contract"])
            plan = Plan.from_json(data["plan"])
        except (CheckpointError, ContractError, PlanError) as cause:
            raise ExportError(f"{self._where}: {cause}") from cause
        check_agreement(model, contract, self._where, ExportError)
        return model, contract, plan

    def _graphs(
        self,
        raw: object,
        files: Mapping[str, FileRecord],
        sizes: Mapping[str, int],
        target: str,
    ) -> dict[str, Graph]:
        fields = self._object(raw, "graphs")
        known = GRAPHS if target == "onnxruntime" else _TENSORRT_GRAPHS
        expected = set(known)
        if not expected - set(OPTIONAL_GRAPHS) <= fields.keys() <= expected:
            self.refuse(f"graphs: expected {', '.join(known)}, got {sorted(fields)!r:.200}")
        graphs = {
            name: self._graph(name, item, files, sizes, target) for name, item in fields.items()
        }
        if len({graph.file for graph in graphs.values()}) != len(graphs):
            self.refuse("graphs: two of them are in one file")
        return graphs

    def _graph(
        self,
        name: str,
        raw: object,
        files: Mapping[str, FileRecord],
        sizes: Mapping[str, int],
        target: str,
    ) -> Graph:
        where = f"graphs: {name}"
        item = self._object(raw, where, frozenset({"file", "nodes", "inputs", "outputs"}))
        if not isinstance(item["file"], str) or item["file"] not in files:
            self.refuse(f"{where}: expected one of its files, got {item['file']!r:.80}")
        graph = Graph(
            item["file"],
            self._integer(item["nodes"], f"{where}: nodes", 1, 1 << 24),
            self._ports(item["inputs"], f"{where}: inputs"),
            self._ports(item["outputs"], f"{where}: outputs"),
        )
        inputs, outputs = _INTERFACE[name]
        if inputs is not None and target == "tensorrt":
            inputs = {port: what for port, what in inputs.items() if port != _SETTLED}
        if inputs is not None:
            self._fit(graph.inputs, inputs, sizes, f"{where}: inputs")
        self._fit(graph.outputs, outputs, sizes, f"{where}: outputs")
        return graph

    def _ports(self, raw: object, where: str) -> tuple[Port, ...]:
        if not isinstance(raw, list) or not 1 <= len(raw) <= _MAX_TENSORS:
            self.refuse(f"{where}: expected a list of 1 to {_MAX_TENSORS}, got {raw!r:.80}")
        ports = []
        for raw_port in raw:
            item = self._object(raw_port, where, frozenset({"name", "dtype", "shape"}))
            name, dtype, shape = item["name"], item["dtype"], item["shape"]
            if not isinstance(name, str) or not name:
                self.refuse(f"{where}: expected a name, got {name!r:.80}")
            if dtype not in DTYPES:
                self.refuse(
                    f"{where}: {name:.80}: expected dtype of {', '.join(DTYPES)}, got {dtype!r:.40}"
                )
            if (
                not isinstance(shape, list)
                or len(shape) > _MAX_RANK
                or not all((type(n) is int and 0 < n < 1 << 31) or _is_word(n) for n in shape)
            ):
                self.refuse(
                    f"{where}: {name:.80}: expected sizes and names of sizes, got {shape!r:.80}"
                )
            ports.append(Port(name, dtype, tuple(shape)))
        if len({port.name for port in ports}) != len(ports):
            self.refuse(f"{where}: a name stands there twice")
        return tuple(ports)

    def _fit(
        self, ports: Sequence[Port], expected: _Ports, sizes: Mapping[str, int], where: str
    ) -> None:
        names = [port.name for port in ports]
        if sorted(names) != sorted(expected):
            self.refuse(f"{where}: expected {', '.join(expected)}, got {names!r:.200}")
        for port in ports:
            dtype, pattern = expected[port.name]
            shape = [sizes[n] if isinstance(n, str) else n for n in pattern]
            fits = len(shape) == len(port.shape) and all(
                want is _ANY or have == want or isinstance(have, str)
                for want, have in zip(shape, port.shape, strict=True)
            )
            if port.dtype != dtype or not fits:
                free = ["any" if n is _ANY else n for n in shape]
                self.refuse(
                    f"{where}: {port.name}: expected {dtype} {free}, got {port.dtype} "
                    f"{list(port.shape)}"
                )

    def _files(self, raw: object) -> dict[str, FileRecord]:
        records = {}
        fields = self._object(raw, "files")
        if len(fields) > _MAX_FILES:
            self.refuse(f"files: expected at most {_MAX_FILES}, got {len(fields)}")
        for name, raw_file in fields.items():
            if not is_flat(name):
                self.refuse(f"files: expected a name of a file in the folder, got {name!r:.200}")
            item = self._object(raw_file, f"files: {name}", frozenset({"bytes", "sha256"}))
            size = self._integer(item["bytes"], f"files: {name}: bytes", 0, (1 << 63) - 1)
            digest = item["sha256"]
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                self.refuse(f"files: {name}: expected sha256 as hex digits, got {digest!r:.80}")
            records[name] = FileRecord(size, digest)
        return records

    def _provenance(self, raw: object) -> dict[str, Any]:
        """Anybody's JSON, but for what is shown with every chunk."""
        fields = self._object(raw, "provenance")
        if not isinstance(fields.get("source"), str):
            self.refuse(f"provenance: source: expected text, got {fields.get('source')!r:.80}")
        if not isinstance(fields.get("bundle"), (str, type(None))):
            self.refuse(f"provenance: bundle: expected a digest, got {fields['bundle']!r:.80}")
        counts = self._object(fields.get("precision"), "provenance: precision")
        for part, kinds in counts.items():
            kinds = self._object(kinds, f"provenance: precision: {part}")
            if not all(type(count) is int for count in kinds.values()):
                self.refuse(f"provenance: precision: {part}: expected counts, got {kinds!r:.80}")
        return fields

    def _object(
        self, raw: object, where: str, keys: frozenset[str] | None = None
    ) -> dict[str, Any]:
        if not isinstance(raw, dict) or (keys is not None and raw.keys() != keys):
            came = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
            expected = f"an object of {sorted(keys)}" if keys else "an object"
            self.refuse(f"{where}: expected {expected}, got {came!r:.200}")
        return raw

    def _integer(self, value: object, where: str, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            self.refuse(f"{where}: expected an integer from {low} to {high}, got {value!r:.40}")
        return value

    def _boolean(self, value: object, where: str) -> bool:
        if type(value) is not bool:
            self.refuse(f"{where}: expected true or false, got {value!r:.40}")
        return value

    def _choice(self, data: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
        value = data[name]
        if not isinstance(value, str) or value not in choices:
            self.refuse(f"{name}: expected one of {', '.join(choices)}, got {value!r:.40}")
        return value


def _sizes(model: ModelConfig) -> dict[str, int]:
    return {
        "text": model.text_width,
        "state": model.max_state_dim,
        "action": model.max_action_dim,
        "kv": model.kv_heads * model.head_dim,
    }


def _is_word(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 80 and value.isprintable()

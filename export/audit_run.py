"""What ONNX Runtime makes of an export: the operators that really run, by a profile of one call.

An optimised model could be written and read instead, but with its weights, gigabytes of them. A
profile names every node that ran, those of a loop's body too, and only those.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from smolvla_edge.backends.onnx_session import require_onnxruntime, told
from smolvla_edge.errors import VerificationError
from smolvla_edge.export.audit import CODES, each_graph
from smolvla_edge.onnx_folder import CUSTOM_DOMAIN, ExportFolder
from smolvla_edge.ort_ops import library_path

STAGES = ("vision", "prefix", "flow")  # `policy` is these three
FUSED = "MatMulNBits"
FUSES_EIGHT_BITS = (1, 31)  # 1.23.2 fuses codes of 4 bits alone, 1.31.1 and 1.32.0 both
_SIZES = {"cameras": 1, "words": 2, "steps": 1, "horizon": 2, "prefix": 3}
_KEPT = ("schedule", "pull_target", "pull_weights")  # inputs with defaults


def audit_run(folder: ExportFolder, custom: bool) -> dict[str, Any]:
    """Operator types and how many nodes of each ran, by graph; without our library, and, where
    `custom`, with it. Raises VerificationError where products of codes were not fused, or our
    operators did not run."""
    report: dict[str, Any] = {}
    for name in STAGES:
        stored = onnx.load(folder.graph_file(name), load_external_data=False)
        coded = coded_products(stored)
        plain = _profile(folder, name, None)
        fused = plain.get(FUSED, 0)
        expected = sum(count for bits, count in coded.items() if bits == 4 or _fuses_eight_bits())
        if not expected <= fused <= sum(coded.values()):
            raise VerificationError(
                f"audit: {name}: expected {expected} products of codes that ONNX Runtime runs as "
                f"{FUSED}, got {fused}: the others would be widened to float32 in every call. "
                "Nothing was kept; another release of ONNX Runtime may fuse them"
            )
        report[name] = {
            "products_of_codes": sum(coded.values()),
            "widened_in_every_call": sum(coded.values()) - fused,
            "ran": plain,
        }
        if custom:
            ours = our_nodes(stored)
            ran = _profile(folder, name, library_path())
            missing = {op: n for op, n in ours.items() if ran.get(op, 0) != n}
            if missing:
                raise VerificationError(
                    f"audit: {name}: expected our operators {ours} to run with their library, got "
                    f"{ ({op: ran.get(op, 0) for op in missing}) }. Nothing was kept"
                )
            report[name]["ran_with_library"] = ran
    return report


def coded_products(model: onnx.ModelProto) -> Counter[int]:
    """Bits -> how many nodes widen such codes to multiply by them: all but those that look rows of
    a table up, and products of integers."""
    count: Counter[int] = Counter()
    outer: dict[str, int] = {}
    for graph in each_graph(model.graph):
        outer |= {t.name: CODES[t.data_type] for t in graph.initializer if t.data_type in CODES}
        for node in graph.node:
            bits = next((outer[name] for name in node.input if name in outer), None)
            if node.op_type == FUSED:
                bits = next(a.i for a in node.attribute if a.name == "bits")
            if bits is not None and node.op_type in ("DequantizeLinear", "LinearW4", FUSED):
                count[bits] += 1
    return count


def _fuses_eight_bits() -> bool:
    """Whether this ONNX Runtime makes MatMulNBits of 8-bit DequantizeLinear and MatMul."""
    found = require_onnxruntime().__version__.split(".")
    return tuple(map(int, found[:2])) >= FUSES_EIGHT_BITS


def stored_level(folder: ExportFolder) -> int:
    """The highest accuracy_level that products are stored with, which no session can take back."""
    levels = [0]
    for name in STAGES:
        model = onnx.load(folder.graph_file(name), load_external_data=False)
        for graph in each_graph(model.graph):
            for node in graph.node:
                if node.op_type == FUSED:
                    levels += [a.i for a in node.attribute if a.name == "accuracy_level"]
    return max(levels)


def our_nodes(model: onnx.ModelProto) -> dict[str, int]:
    found: Counter[str] = Counter()
    for graph in each_graph(model.graph):
        found.update(node.op_type for node in graph.node if node.domain == CUSTOM_DOMAIN)
    return dict(sorted(found.items()))


def _profile(folder: ExportFolder, name: str, library: Path | None) -> dict[str, int]:
    ort = require_onnxruntime()
    path = folder.graph_file(name)
    inputs = {}
    for port in folder.manifest.graphs[name].inputs:
        if port.name not in _KEPT:
            shape = [_SIZES.get(n, 2) if isinstance(n, str) else n for n in port.shape]
            inputs[port.name] = np.ones(shape, port.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        if library is not None:
            options.register_custom_ops_library(str(library))
        with told(f"run {path}"):
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            session.run(None, inputs)
            events = json.loads(Path(session.end_profiling()).read_text())
    return _ran(events)


def _ran(events: list[dict[str, Any]]) -> dict[str, int]:
    """Distinct nodes by type: one in a loop's body ran many times, and counts once."""
    nodes = {
        (event["name"], event["args"]["node_index"]): event["args"]["op_name"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    }
    return dict(sorted(Counter(nodes.values()).items()))

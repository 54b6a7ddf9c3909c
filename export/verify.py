"""A finished export folder, held to its source before it gets its name.

    audit      its files against the source's own codes; onnx's checks; what ONNX Runtime runs
    measure    raw frames to robot units and every stage between, against the native backend in
               float32 on what the exported weights stand for; how else it may be run, beside it
    report     VERIFICATION.json, all of it, and CARD.md, half a page

Whatever is not within its bound (bounds.py) raises VerificationError, and the exporter keeps
nothing. The same machine, versions and options give the same report.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from smolvla_edge.backends.onnx_session import OnnxOptions
from smolvla_edge.codes import CodeFormat
from smolvla_edge.compress.evidence import ActionError
from smolvla_edge.compress.observations import SYNTHETIC
from smolvla_edge.errors import BackendError, VerificationError
from smolvla_edge.export import bounds, ways
from smolvla_edge.export.audit import audit_graphs, audit_weights
from smolvla_edge.export.audit_run import audit_run, stored_level
from smolvla_edge.export.card import card
from smolvla_edge.export.measure import Apart, Found, apart
from smolvla_edge.export.observed import Observed
from smolvla_edge.export.reference import float_tensors
from smolvla_edge.onnx_folder import ExportFolder, read_export
from smolvla_edge.ort_ops import library_path
from smolvla_edge.source import Source
from smolvla_edge.version import __version__

REPORT_FILE, CARD_FILE = "VERIFICATION.json", "CARD.md"
FORMAT, VERSION = "smolvla-edge onnx verification", 1
TRACED = 4  # observations whose stages are compared: one of each kind (observed.py)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """data: "synthetic", or a folder as for `quantize`.  observations: how many of it."""

    data: str = SYNTHETIC
    observations: int = 4
    seed: int = 0
    threads: int | None = None


def verify_folder(
    path: Path,
    source: Source,
    settings: Settings | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, str]:
    """The folder `path`, just exported from `source` -> the files that say how that went.

    Raises VerificationError for anything that is not as it should be, ExportError for a folder
    that cannot be read, and what reading the observations raises.
    """
    settings = settings or Settings()
    folder = read_export(path)
    manifest = folder.manifest
    codes = _codes(folder, source)
    custom = manifest.custom_ops and _has_library()
    progress("auditing", 0, 3)
    audit = {"weights": audit_weights(folder, source, codes)}
    progress("auditing", 1, 3)
    audit["onnx"] = audit_graphs(folder)
    progress("auditing", 2, 3)
    audit["operators"] = audit_run(folder, custom)
    progress("auditing", 3, 3)
    measured = _Measurement(folder, source, codes, settings, progress, custom).run()
    report: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "passed": True,  # or there would be no report
        "precision": manifest.precision,
        "form": manifest.form,
        "target": manifest.target,
        "plan": manifest.plan.to_json(),
        "versions": {
            "smolvla-edge": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("onnxruntime", "onnx", "torch", "numpy")},
        },
        **measured,
        "audit": audit,
        "not_run": ["CUDA", "TensorRT", "Jetson"],
    }
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    return {REPORT_FILE: text, CARD_FILE: card(folder, source, report)}


class _Measurement:
    """Every way in turn, one in memory at a time."""

    def __init__(
        self,
        folder: ExportFolder,
        source: Source,
        codes: Mapping[str, CodeFormat],
        settings: Settings,
        progress: Progress,
        custom: bool,
    ) -> None:
        self._folder, self._source, self._codes = folder, source, codes
        self._settings, self._progress, self._custom = settings, progress, custom
        # What no session can take back: rows are rounded by the graphs themselves.
        self._level = stored_level(folder)
        eight = any(form.bits == 8 for form in codes.values())
        self._rounds = folder.manifest.form == "integer" and eight
        manifest = folder.manifest
        height, width = manifest.graphs["vision"].input("pixels").shape[2:]
        self._seen = Observed(
            source,
            settings.data,
            settings.observations,
            settings.seed,
            (int(height), int(width)),
            manifest.plan.rows(source.model.chunk_size),
        )

    def run(self) -> dict[str, Any]:
        """The part of the report that is measured. Raises VerificationError."""
        plan, threads = self._folder.manifest.plan, self._settings.threads
        facts = self._seen.facts()
        beside = self._folder.path.parent
        with float_tensors(self._source, beside) as tensors:
            exact, info = ways.native(
                self._source, tensors, plan, self._seen, TRACED, threads, self._told("reference")
            )
        plain = self._graphs("standard ONNX", OnnxOptions(custom_ops=False))
        sides = (int(side) for size in facts["frames"] for side in size.split("x"))
        rows = self._held(plain, exact, max(sides))
        alone = ways.policy_graph(
            self._folder, self._source, self._seen, TRACED, threads,
            OnnxOptions(custom_ops=False), self._told("policy alone"),
        )  # fmt: skip
        joined = [
            row.check("`policy` against three graphs", **self._limit(bounds.POLICY_GRAPH))
            for row in apart(alone, plain)
        ]
        return {
            "machine": {
                "architecture": platform.machine(),
                "isa": info["isa"],
                "threads": info["threads"],
            },
            "observations": facts,
            "traced": min(TRACED, self._settings.observations),
            "reference": "native backend, float32 arithmetic, on what the exported weights stand "
            "for, under the exported plan",
            "lossy": bool(self._level or self._rounds),
            "stages": [row.to_json() for row in rows],
            "action_error": self._action_error(plain, exact),
            "policy_graph": [row.to_json() for row in joined],
            "custom_operators": self._custom_operators(plain, exact),
            "accuracy_level_4": self._level_four(exact),
            "bundle_native": self._bundle_native(plain, exact),
        }

    def _held(self, plain: Found, exact: Found, longest: int) -> list[Apart]:
        """Standard ONNX against the reference, every stage within its bound."""
        what, held = "standard ONNX against the native backend", []
        for row in apart(plain, exact):
            if row.stage == bounds.PIXELS:
                held.append(row.check(what, bounds.pixels_bound(longest)))
            elif self._level:
                held.append(row.check(what))
            else:
                held.append(row.check(what, **self._limit(bounds.FLOAT32[row.stage])))
        return held

    def _custom_operators(self, plain: Found, exact: Found) -> dict[str, Any] | None:
        """With our library against without it; None where there is none, or nothing for it."""
        if not self._custom:
            return None
        ours = self._graphs("our operators", OnnxOptions(custom_ops=True))
        rounded = any(form.bits == 4 for form in self._codes.values())
        limits = self._limit(bounds.CUSTOM_FLOAT32)
        if rounded:
            limits = {"floor": bounds.ROUNDED_ROWS_DB}
        rows = [
            row.check("our operators against standard ONNX", **limits)
            for row in apart(ours, plain, bounds.STAGES[1:])
        ]
        return {
            "rounds_rows_to_int8": rounded,
            "against_standard": [row.to_json() for row in rows],
            "action_error": self._action_error(ours, exact),
        }

    def _level_four(self, exact: Found) -> dict[str, Any] | None:
        """What ONNX Runtime does by default with codes in standard ONNX: lossy, finite, and no more
        promised. Explicit MatMulNBits say their level themselves."""
        if not self._codes or self._folder.manifest.form == "matmulnbits":
            return None
        fast = self._graphs("accuracy_level 4", OnnxOptions(4, custom_ops=False))
        rows = [row.check("accuracy_level 4") for row in apart(fast, exact)]
        return {
            "lossy": "rows rounded to int8 before products with codes",
            "stages": [row.to_json() for row in rows],
            "action_error": self._action_error(fast, exact),
        }

    def _bundle_native(self, plain: Found, exact: Found) -> dict[str, Any] | None:
        """The bundle as the native backend runs it, which rounds rows too, beside the reference,
        and how far standard ONNX is from it."""
        if not self._codes:
            return None
        as_it_runs, _ = ways.native(
            self._source, self._source.tensors, self._folder.manifest.plan, self._seen, TRACED,
            self._settings.threads, self._told("bundle, native"),
        )  # fmt: skip
        return {
            "stages": [row.to_json() for row in apart(as_it_runs, exact)],
            "export_against_it": [row.to_json() for row in apart(plain, as_it_runs)],
            "action_error": self._action_error(as_it_runs, exact),
        }

    def _graphs(self, what: str, options: OnnxOptions) -> Found:
        found, _ = ways.graphs(
            self._folder, self._source, self._seen, TRACED, self._settings.threads, options,
            self._told(what),
        )  # fmt: skip
        return found

    def _action_error(self, got: Found, exact: Found) -> dict[str, Any]:
        return ActionError.between(got.actions(), exact.actions()).to_json()

    def _limit(self, bound: float) -> dict[str, float]:
        """What `Apart.check` takes: this bound of float32, or the floor of what rounds."""
        half = self._folder.manifest.precision == "float16"
        if self._level or self._rounds:
            return {"floor": bounds.ROUNDED_ROWS_DB}
        return {"floor": bounds.FLOAT16_DB} if half else {"bound": bound}

    def _told(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._progress(f"measuring: {what}", done, total)


def _codes(folder: ExportFolder, source: Source) -> dict[str, CodeFormat]:
    """Which weights the export says that it holds as codes."""
    if folder.manifest.precision in ("float32", "float16"):
        return {}
    if source.bundle is None:
        raise VerificationError(
            f"{folder.path}: expected a bundle of codes as the source of a folder of "
            f"{folder.manifest.precision}, got a checkpoint"
        )
    return dict(source.bundle.codes)


def _has_library() -> bool:
    try:
        library_path()
    except BackendError:
        return False
    return True

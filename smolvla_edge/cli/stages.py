"""Comparing two traces of one computation, stage by stage, in the order of the data's path."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Trace = Mapping[str, np.ndarray]

# The first pattern that fits a tensor's name decides its stage.
_STAGES = (
    ("letterbox", r"letterbox\..*"),
    ("vision", r"mid\.vision_.*|out\.vision\..*"),
    ("connector", r"out\.connector\..*"),
    ("prefix embeddings", r"out\.prefix_embs"),
    ("prefix layers", r"mid\.prefix_layer\d+"),
    ("keys and values", r"out\.kv\..*"),
    ("action embedding", r"mid\.suffix_embs\..*|mid\.time\..*"),
    ("expert (first step)", r"mid\.step0\.expert_.*"),
    ("velocity", r"out\.v_t\..*"),
    ("flow", r"out\.x_t\..*|out\.actions_padded"),
    ("predict: model space", r"predict\.normalized"),
    ("predict: robot units", r"predict\.actions"),
)
# What both backends must have computed; without it a comparison proves nothing.
REQUIRED = frozenset(name for name, _ in _STAGES) - {"letterbox", "prefix layers"}

# Rows of masked tokens are computed by the reference only: the axis along which to drop them.
_ROW_AXIS = (
    (re.compile(r"out\.prefix_embs|mid\.prefix_layer\d+"), 1),
    (re.compile(r"out\.kv\..*"), 2),
)
_VALID = "out.prefix_pad_masks"


@dataclass(frozen=True)
class StageResult:
    """The worst tensor of a stage: errors of the native value against the reference's."""

    stage: str
    tensors: int
    worst: str
    max_error: float
    max_reference: float
    passed: bool
    problem: str = ""

    @property
    def relative(self) -> float:
        return _relative(self.max_error, self.max_reference)

    def to_json(self) -> dict[str, Any]:
        """Without infinities and NaN, which JSON does not have."""
        errors = (self.max_error, self.max_reference, self.relative)
        names = ("max_error", "max_reference", "relative_error")
        finite = (value if math.isfinite(value) else None for value in errors)
        return {
            "stage": self.stage,
            "tensors": self.tensors,
            "worst": self.worst,
            **dict(zip(names, finite, strict=True)),
            "passed": self.passed,
            "problem": self.problem,
        }


def compare(native: Trace, reference: Trace, tolerance: float) -> list[StageResult]:
    """One result for each stage that the native trace has a tensor of, and for required ones.

    A tensor passes when its largest error is at most `tolerance` of the reference's largest
    magnitude.
    """
    groups: dict[str, list[StageResult]] = {name: [] for name, _ in _STAGES}
    for name, value in native.items():
        stage = _stage_of(name)
        if stage is not None:
            groups[stage].append(_compare(stage, name, value, reference, tolerance))
    results = []
    for stage, tensors in groups.items():
        if tensors:
            # A problem (wrong shape, NaN) has an infinite error, so that it comes first.
            worst = max(tensors, key=lambda result: result.relative)
            results.append(_merged(worst, tensors))
        elif stage in REQUIRED:
            results.append(StageResult(stage, 0, "", math.inf, 0.0, False, "not computed"))
    return results


def _stage_of(name: str) -> str | None:
    return next((stage for stage, names in _STAGES if re.fullmatch(names, name)), None)


def _merged(worst: StageResult, tensors: list[StageResult]) -> StageResult:
    return StageResult(
        worst.stage,
        len(tensors),
        worst.worst,
        worst.max_error,
        worst.max_reference,
        all(result.passed for result in tensors),
        worst.problem,
    )


def _compare(
    stage: str, name: str, value: np.ndarray, reference: Trace, tolerance: float
) -> StageResult:
    if name not in reference:
        return StageResult(stage, 1, name, math.inf, 0.0, False, "the reference has no such tensor")
    wanted = _valid_rows(name, reference)
    if value.shape != wanted.shape:
        problem = f"shape {list(value.shape)}, the reference has {list(wanted.shape)}"
        return StageResult(stage, 1, name, math.inf, 0.0, False, problem)
    if not np.isfinite(value).all():
        return StageResult(stage, 1, name, math.inf, 0.0, False, "NaN or infinity")
    error = float(np.abs(value.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0))
    largest = float(np.abs(wanted).max(initial=0.0))
    if not math.isfinite(largest):
        return StageResult(stage, 1, name, math.inf, 0.0, False, "the reference is not finite")
    return StageResult(stage, 1, name, error, largest, error <= tolerance * largest)


def _valid_rows(name: str, reference: Trace) -> np.ndarray:
    value = reference[name]
    for pattern, axis in _ROW_AXIS:
        if pattern.fullmatch(name):
            return value.compress(reference[_VALID][0], axis=axis)
    return value


def _relative(error: float, largest: float) -> float:
    if error == 0.0:
        return 0.0
    return error / largest if largest > 0.0 else math.inf

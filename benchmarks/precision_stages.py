"""How far two runs of the same model are apart, stage by stage. Needs numpy only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

# Names of recorded tensors (those of the golden files) -> the stage that they belong to.
_STAGES = (
    (re.compile(r"out\.vision\.\d+"), "vision tower"),
    (re.compile(r"out\.connector\.\d+"), "connector"),
    (re.compile(r"out\.kv\.\d+\.key"), "prefix keys"),
    (re.compile(r"out\.kv\.\d+\.value"), "prefix values"),
    (re.compile(r"out\.v_t\.step(\d+)"), "velocity, step {}"),
    (re.compile(r"out\.actions"), "actions"),
)
ACTIONS = "actions"
Errors = dict[str, dict[str, float]]  # stage -> max, sum, count, largest


def stage_of(name: str) -> str | None:
    """The stage of a recorded tensor, or None when it is not reported."""
    for pattern, stage in _STAGES:
        if match := pattern.fullmatch(name):
            return stage.format(int(match[1]) + 1) if match.groups() else stage
    return None


def errors_between(got: Mapping[str, Any], want: Mapping[str, Any]) -> Errors:
    """Absolute errors of every stage that both runs recorded; tensors as float arrays.

    max: the largest; sum and count: of all elements, for means over several runs; largest: the
    largest magnitude of `want`. Raises ValueError for shapes that differ or values not finite.
    """
    found: Errors = {}
    for name, reference in want.items():
        stage = stage_of(name)
        if stage is None or name not in got:
            continue
        mine = np.asarray(got[name], np.float64)
        theirs = np.asarray(reference, np.float64)
        if mine.shape != theirs.shape:
            raise ValueError(f"{name}: expected shape {theirs.shape}, got {mine.shape}")
        gap = np.abs(mine - theirs)
        if not np.isfinite(gap).all():
            raise ValueError(f"{name}: expected finite values")
        entry = {
            "max": float(gap.max()),
            "sum": float(gap.sum()),
            "count": float(gap.size),
            "largest": float(np.abs(theirs).max()),
        }
        found[stage] = _joined(found[stage], entry) if stage in found else entry
    return found


def merge(runs: list[Errors]) -> Errors:
    """The errors of several runs as one."""
    merged: Errors = {}
    for run in runs:
        for stage, entry in run.items():
            merged[stage] = _joined(merged[stage], entry) if stage in merged else dict(entry)
    return merged


def _joined(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {
        "max": max(a["max"], b["max"]),
        "sum": a["sum"] + b["sum"],
        "count": a["count"] + b["count"],
        "largest": max(a["largest"], b["largest"]),
    }


def mean(entry: dict[str, float]) -> float:
    return entry["sum"] / entry["count"]


def compare(ours: Errors, rival: Errors) -> list[dict[str, Any]]:
    """One row a stage that both have, in the order of the computation."""
    rows = []
    for stage in sorted(ours.keys() & rival.keys(), key=_order):
        mine, theirs = ours[stage], rival[stage]
        rows.append(
            {
                "stage": stage,
                "largest": theirs["largest"],
                "ours_max": mine["max"],
                "ours_mean": mean(mine),
                "rival_max": theirs["max"],
                "rival_mean": mean(theirs),
                "ratio_max": mine["max"] / theirs["max"],
                "ratio_mean": mean(mine) / mean(theirs),
            }
        )
    return rows


def _order(stage: str) -> tuple[int, int]:
    names = [stage.partition(",")[0] for _, stage in _STAGES]
    kind, _, step = stage.partition(", step ")
    return names.index(kind), int(step or 0)

"""From episodes to a table: rates with intervals, lengths, smoothness, latency, comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from smolvla_edge.errors import InputError
from smolvla_edge.eval.episode import EpisodeResult
from smolvla_edge.eval.intervals import compare_pairs, wilson
from smolvla_edge.eval.metaworld import CONTROL_RATE


def summarize(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """One side's episodes -> {"tasks": {name: row}, "all": row}, JSON-able.

    A row has n, successes, rate, the Wilson interval (95 %), and the mean steps of solved episodes.
    "all" weighs every task the same; its interval is that of all episodes together.
    """
    tasks = {name: _row(rows) for name, rows in by_task(results).items()}
    everything = _row(results)
    everything["rate"] = float(np.mean([row["rate"] for row in tasks.values()]))
    latency = np.array([ms for result in results for ms in result.latency_ms])
    steps = sum(result.steps for result in results)
    return {
        "tasks": tasks,
        "all": everything,
        "latency_ms": {
            name: round(float(np.percentile(latency, q)), 2)
            for name, q in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99))
        },
        "chunks": len(latency),
        # How many actions a second one process could hand out, and what the robot asks for.
        "actions_per_second": round(float(steps / (latency.sum() / 1e3)), 1),
        "control_rate": CONTROL_RATE,
        "evaluations": _share([n for result in results for n in result.evaluations]),
        "dirty": _share([part for result in results for part in result.dirty]),
        "seam_jump": _mean([r.seam_jump for r in results]),
        "inner_jump": _mean([r.inner_jump for r in results]),
    }


def compare(first: Sequence[EpisodeResult], second: Sequence[EpisodeResult]) -> dict[str, Any]:
    """The paired comparison of two sides' episodes of the same jobs, in the same order; JSON-able.

    Raises InputError when they are of other tasks or seeds.
    """
    jobs = [[(result.task, result.seed) for result in side] for side in (first, second)]
    if jobs[0] != jobs[1]:
        raise InputError("compare: expected episodes of the same tasks and seeds on both sides")
    a, b = by_task(first), by_task(second)
    pairs = compare_pairs(
        [[result.success for result in a[task]] for task in a],
        [[result.success for result in b[task]] for task in b],
    )
    return asdict(pairs)


def _share(values: Sequence[float]) -> float | None:
    """The mean over chunks; None where nothing was counted."""
    return round(float(np.mean(values)), 4) if values else None


def _mean(jumps: Sequence[float | None]) -> float | None:
    """Over the episodes that have one: a chunk of one action has no inside."""
    known = [jump for jump in jumps if jump is not None]
    return round(float(np.mean(known)), 4) if known else None


def by_task(results: Sequence[EpisodeResult]) -> dict[str, list[EpisodeResult]]:
    found: dict[str, list[EpisodeResult]] = {}
    for result in results:
        found.setdefault(result.task, []).append(result)
    return found


def _row(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    n, successes = len(results), sum(result.success for result in results)
    low, high = wilson(successes, n)
    solved = [result.steps for result in results if result.success]
    return {
        "n": n,
        "successes": successes,
        "rate": successes / n,
        "low": low,
        "high": high,
        "mean_steps": round(float(np.mean(solved)), 1) if solved else None,
    }

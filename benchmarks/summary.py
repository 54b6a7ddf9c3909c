"""The arithmetic of a benchmark: turns, percentiles, medians, ratios, differences. No clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Item = TypeVar("Item")
P99_NEEDS = 100  # below this many samples the 99th percentile is the largest one, and is called so


@dataclass
class Sample:
    """One timed chunk. `foreign`: share of the machine's CPU time that was not this worker's.

    device_mib: of the GPU's memory, what the worker holds; allocated_mib: what torch handed out.
    """

    ms: float
    stages: dict[str, float]
    foreign: float
    stolen: float
    peak_rss_mib: float
    actions: list[list[float]] = field(repr=False)
    device_mib: float | None = None
    allocated_mib: float | None = None


def turns(items: Iterable[Item], round_index: int) -> list[Item]:
    """The order of one round: A B C, then C B A, so that a drift of the machine hits all alike."""
    return list(items) if round_index % 2 == 0 else list(items)[::-1]


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the sorted values, as numpy's default."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def undisturbed(samples: Sequence[Sample], quiet_limit: float) -> tuple[list[Sample], bool]:
    """The samples to count, and whether disturbed ones had to be counted.

    The quiet ones; all of them when fewer than 3 are quiet (fewer than all, when there are less).
    """
    quiet = [s for s in samples if s.foreign <= quiet_limit]
    if len(quiet) >= min(3, len(samples)):
        return quiet, False
    return list(samples), True


def summarise(samples: Sequence[Sample], quiet_limit: float) -> dict[str, Any]:
    """Percentiles of one engine's samples in one case, and of its stages."""
    used, with_disturbed = undisturbed(samples, quiet_limit)
    times = [s.ms for s in used]
    median = percentile(times, 0.5)
    stages = {name: percentile([s.stages[name] for s in used], 0.5) for name in used[0].stages}
    return {
        "p50_ms": median,
        "p10_ms": percentile(times, 0.1),
        "p90_ms": percentile(times, 0.9),
        "p99_ms": percentile(times, 0.99) if len(times) >= P99_NEEDS else None,
        "min_ms": min(times),
        "max_ms": max(times),
        "stages_ms": stages,
        "samples": len(samples),
        "samples_used": len(used),
        "disturbed": sum(s.foreign > quiet_limit for s in samples),
        "disturbed_used": with_disturbed,
        "spread": (percentile(times, 0.9) - percentile(times, 0.1)) / median,
        "peak_rss_mib": max(s.peak_rss_mib for s in samples),
        "all_ms": [round(s.ms, 3) for s in samples],
        "all_foreign": [round(s.foreign, 4) for s in samples],
        "all_stolen": [round(s.stolen, 4) for s in samples],
    }


def action_difference(left: Sample, right: Sample) -> dict[str, float]:
    """Largest and mean absolute difference, and the largest magnitude of `right`."""
    pairs = [
        (a, b)
        for row_a, row_b in zip(left.actions, right.actions, strict=True)
        for a, b in zip(row_a, row_b, strict=True)
    ]
    gaps = [abs(a - b) for a, b in pairs]
    return {
        "max_abs": max(gaps),
        "mean_abs": sum(gaps) / len(gaps),
        "largest_action": max(abs(b) for _, b in pairs),
    }


def ratio(ours: dict[str, Any], rival: dict[str, Any]) -> dict[str, Any]:
    """How many times longer the rival takes, by the medians of one case of one run.

    low, high: the ratio when the rival's p10 meets our p90, and the other way round.
    """
    return {
        "engine": ours["engine"],
        "rival": rival["engine"],
        "cameras": ours["cameras"],
        "language": ours["language"],
        "ratio": rival["p50_ms"] / ours["p50_ms"],
        "low": rival["p10_ms"] / ours["p90_ms"],
        "high": rival["p90_ms"] / ours["p10_ms"],
    }

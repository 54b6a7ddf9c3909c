"""One operation at one shape, and who computes it: what micro.py times side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu.clock import Call, sets_for

LEAST_NORM = 1e-30


@dataclass(frozen=True)
class Prepared:
    """A call on operands of its own. result, expected: float32, looked at after the call.

    Without `expected` the call is one whose parts are checked elsewhere.
    """

    call: Call
    result: Callable[[], torch.Tensor] | None = None
    expected: Callable[[], torch.Tensor] | None = None


class Skip(Exception):
    """A contestant that cannot take part here, and why."""


@dataclass(frozen=True)
class Contestant:
    """Somebody's way of doing a case. nbytes: the least that a call moves.

    `make` gives fresh random operands each time; it raises Skip where something is missing.
    """

    by: str
    precision: str
    nbytes: float
    make: Callable[[], Prepared]

    @property
    def is_ours(self) -> bool:
        return self.by.startswith("smolvla-edge")


@dataclass(frozen=True)
class Case:
    """flops: of one call; calls: in a chunk of actions."""

    name: str
    op: str  # linear, attention, rows or step
    shape: str
    flops: float
    calls: int
    contestants: list[Contestant] = field(default_factory=list)


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference over that of `expected`; inf for anything not finite."""
    if not bool(torch.isfinite(result).all()):
        return float("inf")
    gap = torch.linalg.vector_norm((result - expected).double())
    return float(gap / max(LEAST_NORM, float(torch.linalg.vector_norm(expected.double()))))


def hold(case: Case, one: Contestant, clock: Any) -> dict[str, Any]:
    """Times of one contestant, cold and warm, and its error; or why there are none."""
    entry: dict[str, Any] = {
        "case": case.name, "op": case.op, "shape": case.shape, "calls_in_chunk": case.calls,
        "mflop": case.flops * 1e-6, "mb": one.nbytes * 1e-6, "by": one.by,
        "precision": one.precision, "ours": one.is_ours,
    }  # fmt: skip
    try:
        sets = [one.make() for _ in range(sets_for(one.nbytes, clock.l2_bytes))]
        first = sets[0]
        first.call()
        if first.result and first.expected:
            entry["error"] = relative_error(first.result(), first.expected())
        entry["sets"] = len(sets)
        entry["cold"] = clock.time([prepared.call for prepared in sets]).to_json()
        entry["warm"] = clock.time([first.call]).to_json()
    except Skip as reason:
        entry["skipped"] = str(reason)
    return entry

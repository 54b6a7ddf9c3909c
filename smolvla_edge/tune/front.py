"""Which plans are worth measuring, and which of the measured ones is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smolvla_edge.errors import InputError

if TYPE_CHECKING:
    from smolvla_edge.tune.finalists import Finalist

Point = tuple[float, float]
_AS_FAST = 0.02  # times nearer than this share are not told apart
_LEAST_ERROR = 1e-6  # smaller errors count as this one where errors are compared by ratio


@dataclass(frozen=True)
class Budget:
    """At most this much error (rms, share of the actions' range) and time (90th percentile of a
    call, milliseconds); None: no bound."""

    action_error: float | None = None
    latency_ms: float | None = None

    @staticmethod
    def parse(words: Sequence[str]) -> Budget:
        """["action_error=1%", "latency=200ms"]; one bound each. Raises InputError."""
        found: dict[str, float] = {}
        for word in words:
            name, _, value = word.partition("=")
            key, unit, scale = _BOUNDS.get(name.strip(), ("", "", 0.0))
            number = value.strip().removesuffix(unit).strip() if unit else ""
            if not key or key in found or not value.strip().endswith(unit) or not _positive(number):
                raise InputError(
                    "--budget: expected action_error=1% (or another percentage), latency=200ms, or "
                    f"each of them once, got {word!r}"
                )
            found[key] = float(number) * scale
        return Budget(**found)

    def excess(self, finalist: Finalist) -> float:
        """How many times the tightest bound is exceeded; at most 1 where all hold."""
        used = [0.0]
        if self.action_error is not None:
            used.append(finalist.held_out.rms_of_range / self.action_error)
        if self.latency_ms is not None:
            used.append(finalist.latency.p90_ms / self.latency_ms)
        return max(used)

    def describe(self) -> str:
        words = []
        if self.action_error is not None:
            words.append(f"action error at most {100 * self.action_error:.3g} %")
        if self.latency_ms is not None:
            words.append(f"90 % of calls within {self.latency_ms:g} ms")
        return ", ".join(words)


_BOUNDS = {"action_error": ("action_error", "%", 0.01), "latency": ("latency_ms", "ms", 1.0)}


@dataclass(frozen=True)
class Choice:
    """The number of the finalist that is wanted. fits: within the budget; otherwise it is the one
    that exceeds it least."""

    number: int
    fits: bool


def choose(finalists: Sequence[Finalist], budget: Budget) -> Choice:
    """The fastest within a bound of the error (of those that are as fast, the least error); the
    least error within a bound of the time, because time that is left over is worth nothing."""
    fitting = [i for i, one in enumerate(finalists) if budget.excess(one) <= 1]
    if not fitting:
        nearest = min(range(len(finalists)), key=lambda i: budget.excess(finalists[i]))
        return Choice(nearest, False)

    if budget.latency_ms is None:
        least = min(finalists[i].latency.median_ms for i in fitting)
        fitting = [i for i in fitting if finalists[i].latency.median_ms <= least * (1 + _AS_FAST)]

    def cost(i: int) -> Point:
        return finalists[i].held_out.rms_of_range, finalists[i].latency.median_ms

    return Choice(min(fitting, key=cost), True)


def nearest(finalists: Sequence[Finalist], chosen: int, count: int) -> list[int]:
    """The numbers of the finalists on the measured front beside the chosen one, nearest in time
    first."""
    time = finalists[chosen].latency.median_ms
    others = [i for i in measured_front(finalists) if i != chosen]
    return sorted(others, key=lambda i: abs(math.log(finalists[i].latency.median_ms / time)))[
        :count
    ]


def measured_front(finalists: Sequence[Finalist]) -> list[int]:
    """Of measured median time against the error on held-out streams, fastest first."""
    return non_dominated([(one.latency.median_ms, one.held_out.rms_of_range) for one in finalists])


def non_dominated(points: Sequence[Point]) -> list[int]:
    """The numbers of the points that no other is as good as in both and better in one, the first of
    equal ones, by rising first coordinate."""
    found: list[int] = []
    best = math.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i], i)):
        if points[i][1] < best:
            found.append(i)
            best = points[i][1]
    return found


def thinned(points: Sequence[Point], most: int, around: float | None = None) -> list[int]:
    """The numbers of at most so many (work, error), spread over both: the two ends, the two on
    either side of the error `around`, then always the one that is farthest from those taken."""
    if len(points) <= most:
        return list(range(len(points)))
    order = sorted(range(len(points)), key=lambda i: points[i])
    taken = [order[0], order[-1]][:most]
    if around is not None:
        within = [i for i in order if points[i][1] <= around]
        beyond = [i for i in order if points[i][1] > around]
        sides = [*within[:1], *beyond[-1:]]
        taken += [i for i in sides if i not in taken][: most - len(taken)]
    scaled = [(math.log(max(w, 1.0)), math.log(max(e, _LEAST_ERROR))) for w, e in points]
    spans = [max(s[k] for s in scaled) - min(s[k] for s in scaled) or 1.0 for k in (0, 1)]

    def apart(i: int) -> float:
        return min(
            sum(((scaled[i][k] - scaled[j][k]) / spans[k]) ** 2 for k in (0, 1)) for j in taken
        )

    while len(taken) < most:
        taken.append(max((i for i in order if i not in taken), key=apart))
    return sorted(taken)


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False

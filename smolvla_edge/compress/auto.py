"""A recipe lengthened until its actions are close enough: more bits for the layers that need them.

The layers' own costs are measured first (sensitivity.py). Then, while the error of the whole policy
on held-out observations is too large, the layers with the largest shares of it go one rung up and
are fitted again:

    int4 in groups of 128 -> 64 -> 32 -> int8 -> as the source stores it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from smolvla_edge.codes import CodeFormat
from smolvla_edge.compress.sensitivity import GroupError
from smolvla_edge.errors import QuantizationError

RUNGS: tuple[CodeFormat | None, ...] = (
    CodeFormat(4, 128), CodeFormat(4, 64), CodeFormat(4, 32), CodeFormat(8), None,
)  # fmt: skip
# What a rung leaves of a layer's squared error, about: of half the group two thirds, of 16 times as
# many codes 1/256. Only the order of lifting depends on it.
_LEFT = (0.67, 0.67, 1 / 256, 0.0)
_AT_ONCE = 0.5  # layers with half of the remaining squared error go up before it is measured again

Formats = Mapping[str, CodeFormat]


@dataclass(frozen=True)
class Attempt:
    """Formats that were tried, and the held-out error, rms as a share of the actions' range."""

    formats: Formats
    rms_of_range: float


def lengthen(
    costs: Sequence[GroupError], max_error: float, error_of: Callable[[Formats], float]
) -> Iterator[Attempt]:
    """Attempts with more and more bits, the last of them within `max_error`.

    costs: of every group at the format that it begins with. error_of: fits and measures. Raises
    QuantizationError when nothing is left to lift.
    """
    rung = {cost.group: RUNGS.index(cost.format) for cost in costs}
    share = {cost.group: cost.rms_of_range**2 for cost in costs}
    found = float("inf")
    while True:
        formats = {
            name: form
            for cost in costs
            if (form := RUNGS[rung[cost.group]]) is not None
            for name in cost.weights
        }
        if not formats:
            raise QuantizationError(
                f"expected actions within {max_error:.3%} of their range (rms), and the last layer "
                f"of codes still gave {found:.3%}: allow more, or keep the policy in bfloat16"
            )
        found = error_of(formats)
        yield Attempt(formats, found)
        if found <= max_error:
            return
        for group in _worst(share, rung):
            share[group] *= _LEFT[rung[group]]
            rung[group] += 1


def _worst(share: Mapping[str, float], rung: Mapping[str, int]) -> list[str]:
    """The fewest groups that hold `_AT_ONCE` of the squared error of those that can go up."""
    able = sorted((g for g in share if RUNGS[rung[g]] is not None), key=lambda g: -share[g])
    wanted = _AT_ONCE * sum(share[g] for g in able)
    chosen, held = [], 0.0
    for group in able:
        chosen.append(group)
        held += share[group]
        if held >= wanted:
            break
    return chosen

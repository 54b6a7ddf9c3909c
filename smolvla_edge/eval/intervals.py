"""Success rates with their uncertainty, and paired comparisons of two policies.

Two policies that are judged on the same initial states and noises are compared pair by pair: what
counts are the discordant pairs, in which one succeeded and the other did not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.errors import InputError

RESAMPLES = 20_000


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a success rate (Wilson 1927, without continuity correction) -> (low, high).

    Unlike rate +- z * sqrt(p (1 - p) / n) it is never empty at 0 or n successes and never leaves
    [0, 1]. Raises InputError for n < 1 or successes outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"wilson: expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = _z(confidence)
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and at n the bound is exactly 0 and 1; the arithmetic above misses by a rounding.
    low = 0.0 if successes == 0 else middle - half
    return low, 1.0 if successes == n else middle + half


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947): are the discordant pairs a fair coin?

    only_first and only_second count the pairs that only one of the two solved. Without discordant
    pairs there is no evidence of a difference: 1.
    """
    if only_first < 0 or only_second < 0:
        raise InputError(f"mcnemar: expected counts, got {only_first} and {only_second}")
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)  # integers: exact for any n


def smallest_resolvable(
    pairs: int, discordant_rate: float, confidence: float = 0.95, power: float = 0.8
) -> float:
    """The least difference of two success rates that so many pairs show with this power.

    Normal approximation for paired proportions (Connor 1987, its large-sample form):
    (z_confidence + z_power) * sqrt(discordant_rate / pairs).
    """
    if pairs < 1 or not 0 <= discordant_rate <= 1:
        raise InputError(
            f"smallest_resolvable: expected pairs >= 1 and a rate in [0, 1], got {pairs} and "
            f"{discordant_rate}"
        )
    z = _z(confidence) + NormalDist().inv_cdf(power)
    return min(1.0, z * math.sqrt(discordant_rate / pairs))


@dataclass(frozen=True)
class PairedDifference:
    """The second policy's mean success less the first's, over the same episodes."""

    pairs: int
    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float  # mean over tasks
    low: float  # bootstrap interval of the difference
    high: float
    p_value: float  # McNemar, exact
    resolvable: float  # what this many pairs show with 80 % power, at this rate of discordance

    @property
    def discordant(self) -> int:
        return self.only_first + self.only_second


def compare_pairs(
    first: Sequence[Sequence[bool]],
    second: Sequence[Sequence[bool]],
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Compare two policies task by task: first[t][i] and second[t][i] are the same episode.

    The difference is the mean over tasks of the tasks' differences; its interval is a percentile
    bootstrap (Efron 1979) that resamples pairs within each task, because the tasks are fixed and
    the initial states are the sample. Deterministic given `seed`. Raises InputError for episodes
    that do not pair up.
    """
    if [len(row) for row in first] != [len(row) for row in second] or not first:
        raise InputError(
            "compare_pairs: expected the same episodes of the same tasks on both sides"
        )
    if not all(first):
        raise InputError("compare_pairs: expected at least one episode of each task")
    random = np.random.default_rng(seed)
    counts = np.zeros(4, int)
    means: list[float] = []
    resampled: NDArray[np.float64] = np.zeros(RESAMPLES)
    for a, b in zip(first, second, strict=True):
        n = len(a)
        table = np.bincount(2 * np.asarray(a, int) + np.asarray(b, int), minlength=4)
        counts += table
        means.append(float(table[1] - table[2]) / n)
        # Resampling n pairs of four kinds is one multinomial draw.
        draws = random.multinomial(n, table / n, RESAMPLES)
        resampled += (draws[:, 1] - draws[:, 2]) / n / len(first)
    outside = (1 - confidence) / 2
    low, high = np.quantile(resampled, [outside, 1 - outside])
    neither, only_second, only_first, both = (int(c) for c in counts)
    pairs = int(counts.sum())
    return PairedDifference(
        pairs=pairs,
        both=both,
        only_first=only_first,
        only_second=only_second,
        neither=neither,
        difference=float(np.mean(means)),
        low=float(low),
        high=float(high),
        p_value=mcnemar(only_first, only_second),
        # Without a discordant pair the rate is not 0, only below what was seen.
        resolvable=smallest_resolvable(pairs, max(1, only_first + only_second) / pairs, confidence),
    )


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"confidence: expected a number between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)

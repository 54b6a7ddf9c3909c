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


def mcnemar_power(
    pairs: int, discordant_rate: float, difference: float, confidence: float = 0.95
) -> float:
    """How often McNemar's exact test finds that the second policy is better by `difference`.

    The exact power, summed over how many of the pairs are discordant (binomial at
    discordant_rate) and how many of those only the second solves.
    """
    counts = np.arange(pairs + 1)
    chances = _binomial(pairs, discordant_rate)
    better = (1 + difference / discordant_rate) / 2  # of a discordant pair
    power = 0.0
    for n in counts[chances > 1e-9]:
        tail = 2 * np.cumsum(_binomial(int(n), 0.5)[: n // 2 + 1])
        allowed = int((tail <= 1 - confidence + 1e-12).sum())  # 0 to allowed - 1 against it
        power += float(chances[n] * _binomial(int(n), better)[n - allowed + 1 :].sum())
    return power


def smallest_resolvable(
    pairs: int, discordant_rate: float, confidence: float = 0.95, power: float = 0.8
) -> float | None:
    """The least difference of two success rates that so many pairs show with this power.

    discordant_rate: of pairs that only one of the two solves; where the difference itself is
    larger, that. None when not even a difference of 1 is shown: fewer than 6 pairs, at 95 %.
    Raises InputError for pairs < 1 and a rate outside [0, 1].
    """
    if pairs < 1 or not 0 <= discordant_rate <= 1:
        raise InputError(
            f"smallest_resolvable: expected pairs >= 1 and a rate in [0, 1], got {pairs} and "
            f"{discordant_rate}"
        )

    def enough(difference: float) -> bool:
        rate = max(discordant_rate, difference)
        return mcnemar_power(pairs, rate, difference, confidence) >= power

    if not enough(1.0):
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def score_interval(
    only_first: int, only_second: int, pairs: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the second rate less the first by inverting the score test (Tango 1998).

    Unlike a bootstrap it is not empty when no pair is discordant: then it is +-z^2 / (n + z^2).
    """
    z = _z(confidence)
    seen = (only_second - only_first) / pairs

    def score(difference: float) -> float:
        b = -only_second - only_first + (2 * pairs - only_second + only_first) * difference
        c = -only_first * difference * (1 - difference)
        first = (math.sqrt(max(0.0, b * b - 8 * pairs * c)) - b) / (4 * pairs)
        variance = pairs * (2 * first + difference * (1 - difference))
        missing = only_second - only_first - pairs * difference
        return missing / math.sqrt(max(variance, 1e-300))

    def bound(outside: float) -> float:
        inside = seen
        while abs(inside - outside) > 1e-9:
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(score(middle)) <= z else (inside, middle)
        return inside

    return bound(-1.0), bound(1.0)


@dataclass(frozen=True)
class PairedDifference:
    """The second policy's mean success less the first's, over the same episodes."""

    pairs: int
    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float  # mean over tasks
    low: float  # interval of the difference
    high: float
    p_value: float  # McNemar, exact
    # What this many pairs show with 80 % power, at this rate of discordance; None: nothing.
    resolvable: float | None

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

    The difference is the mean over tasks of the tasks' differences. Its interval is a percentile
    bootstrap (Efron 1979) that resamples pairs within each task, because the tasks are fixed and
    the initial states are the sample; it is widened to the score interval of all pairs, because
    few discordant pairs say less than resampling them does. Deterministic given `seed`. Raises
    InputError for episodes that do not pair up.
    """
    if [len(row) for row in first] != [len(row) for row in second] or not first:
        raise InputError(
            "compare_pairs: expected the same episodes of the same tasks on both sides"
        )
    if not all(first):
        raise InputError("compare_pairs: expected at least one episode of each task")
    # Kinds of pairs, [tasks, (neither, only second, only first, both)]
    kinds = np.array(
        [np.bincount(2 * np.asarray(a, int) + np.asarray(b, int), minlength=4)
         for a, b in zip(first, second, strict=True)]
    )  # fmt: skip
    counts = kinds.sum(axis=0)
    means = (kinds[:, 1] - kinds[:, 2]) / kinds.sum(axis=1)
    neither, only_second, only_first, both = (int(c) for c in counts)
    pairs = int(counts.sum())
    around = bootstrap_interval(kinds, confidence, seed)
    scored = score_interval(only_first, only_second, pairs, confidence)
    return PairedDifference(
        pairs=pairs,
        both=both,
        only_first=only_first,
        only_second=only_second,
        neither=neither,
        difference=float(np.mean(means)),
        low=min(around[0], scored[0]),
        high=max(around[1], scored[1]),
        p_value=mcnemar(only_first, only_second),
        # Without a discordant pair the rate is not 0, only below what was seen.
        resolvable=smallest_resolvable(pairs, max(1, only_first + only_second) / pairs, confidence),
    )


def bootstrap_interval(
    kinds: NDArray[np.int_], confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Of the mean over tasks of (only second - only first) / pairs, from `kinds` [tasks, 4]."""
    random = np.random.default_rng(seed)
    resampled: NDArray[np.float64] = np.zeros(RESAMPLES)
    for row in kinds:
        n = int(row.sum())
        # Resampling n pairs of four kinds is one multinomial draw.
        draws = random.multinomial(n, row / n, RESAMPLES)
        resampled += (draws[:, 1] - draws[:, 2]) / n / len(kinds)
    outside = (1 - confidence) / 2
    low, high = np.quantile(resampled, [outside, 1 - outside])
    return float(low), float(high)


def _binomial(n: int, p: float) -> NDArray[np.float64]:
    """Chances of 0 to n successes."""
    k = np.arange(n + 1)
    if p in (0.0, 1.0):
        return (k == n * p).astype(np.float64)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    found: NDArray[np.float64] = np.exp(
        logs[n] - logs - logs[::-1] + k * math.log(p) + (n - k) * math.log1p(-p)
    )
    return found


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"confidence: expected a number between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)

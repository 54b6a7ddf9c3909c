"""Intervals and paired tests against scipy, and against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from smolvla_edge.errors import InputError
from smolvla_edge.eval.intervals import (
    bootstrap_interval,
    compare_pairs,
    mcnemar,
    mcnemar_power,
    score_interval,
    smallest_resolvable,
    wilson,
)

CASES = [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (49, 50), (475, 500), (1, 1000)]


@pytest.mark.parametrize("successes, n", CASES)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(successes, n, confidence):
    stats = pytest.importorskip("scipy.stats")
    want = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx((want.low, want.high), abs=1e-12)


@pytest.mark.parametrize("successes, n", CASES)
def test_wilson_holds_the_rate_and_stays_in_range(successes, n):
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1


def test_wilson_covers_the_true_rate_as_often_as_it_says():
    """The coverage over all outcomes of 60 tries, weighted by their probability."""
    for p in (0.05, 0.3, 0.8, 0.95):
        covered = sum(
            math.comb(60, k) * p**k * (1 - p) ** (60 - k)
            for k in range(61)
            if wilson(k, 60)[0] <= p <= wilson(k, 60)[1]
        )
        assert 0.92 < covered < 0.985


@pytest.mark.parametrize("pair", [(0, 0), (0, 1), (5, 0), (3, 11), (40, 41), (200, 300)])
def test_mcnemar_is_the_exact_binomial_test(pair):
    stats = pytest.importorskip("scipy.stats")
    n = sum(pair)
    want = stats.binomtest(pair[0], n, 0.5).pvalue if n else 1.0
    assert mcnemar(*pair) == pytest.approx(want, abs=1e-12)
    assert mcnemar(*pair) == mcnemar(*reversed(pair))


def test_a_comparison_counts_each_kind_of_pair():
    first = [[True, True, False, False], [True, False, False, True]]
    second = [[True, False, True, False], [False, False, True, True]]
    found = compare_pairs(first, second)
    assert (found.both, found.only_first, found.only_second, found.neither) == (2, 2, 2, 2)
    assert found.pairs == 8 and found.discordant == 4
    assert found.difference == 0 and found.p_value == 1
    assert found.low == pytest.approx(-found.high, abs=0.02)


def test_every_task_weighs_the_same_whatever_its_episodes():
    found = compare_pairs([[True] * 30, [False]], [[True] * 30, [True]])
    assert found.difference == pytest.approx(0.5)


def test_the_bootstrap_is_the_one_that_resamples_pairs_within_a_task():
    random = np.random.default_rng(0)
    first = (random.random((2, 40)) < 0.6).tolist()
    second = (random.random((2, 40)) < 0.8).tolist()
    kinds = [np.bincount(2 * np.array(a) + np.array(b), minlength=4)
             for a, b in zip(first, second, strict=True)]  # fmt: skip
    low, high = bootstrap_interval(np.array(kinds))
    differences = []
    for _ in range(4000):
        rows = random.integers(0, 40, (2, 40))
        differences.append(
            np.mean([np.array(second[t])[rows[t]].mean() - np.array(first[t])[rows[t]].mean()
                     for t in range(2)])
        )  # fmt: skip
    assert (low, high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.02)
    # What is published is never narrower.
    found = compare_pairs(first, second)
    assert found.low <= low < high <= found.high < high + 0.03


def test_a_comparison_is_the_same_every_time():
    sides = [[True, False, True] * 9], [[False, False, True] * 9]
    assert compare_pairs(*sides) == compare_pairs(*sides)


def test_the_smallest_resolvable_difference_is_found_that_often():
    """With 1600 pairs, 10 % of them discordant, a difference of that size is found in 80 %."""
    pairs, rate = 1600, 0.1
    effect = smallest_resolvable(pairs, rate)
    # Connor's normal approximation (1987), good at so many discordant pairs.
    assert effect == pytest.approx(2.8 * math.sqrt(rate / pairs), rel=0.06)
    random = np.random.default_rng(1)
    counts = random.multinomial(
        pairs, [(rate - effect) / 2, (rate + effect) / 2, 1 - rate], size=4000
    )
    found = np.mean([b > a and mcnemar(int(a), int(b)) <= 0.05 for a, b, _ in counts])
    assert found == pytest.approx(0.8, abs=0.02)
    assert mcnemar_power(pairs, rate, effect) == pytest.approx(0.8, abs=0.01)


def test_few_pairs_show_only_what_their_test_can_find():
    """Six discordant pairs, all one way, are the least that the exact test calls a difference."""
    assert mcnemar(0, 6) < 0.05 < mcnemar(0, 5)
    assert smallest_resolvable(5, 0.2) is None
    for pairs in (6, 10, 500):
        for discordant in (1, 3):
            assert smallest_resolvable(pairs, discordant / pairs) > 0.95 * 6 / pairs
    assert mcnemar_power(6, 1.0, 1.0) == 1.0 and mcnemar_power(5, 1.0, 1.0) == 0.0


@pytest.mark.parametrize("first, second, pairs", [(0, 0, 50), (3, 9, 60), (0, 5, 40), (20, 4, 30)])
def test_the_score_interval_holds_what_the_score_test_does_not_reject(first, second, pairs):
    """Against a search for the likeliest rates that have a given difference."""
    low, high = score_interval(first, second, pairs)
    assert low <= (second - first) / pairs <= high
    assert score_interval(second, first, pairs) == pytest.approx((-high, -low), abs=1e-6)

    def score(difference):
        p = np.linspace(max(0, -difference), (1 - difference) / 2, 200_001)[1:-1]  # only first
        with np.errstate(divide="ignore", invalid="ignore"):
            likely = (
                first * np.log(p)
                + second * np.log(p + difference)
                + (pairs - first - second) * np.log1p(-2 * p - difference)
            )
        likely[~np.isfinite(likely)] = -np.inf
        q = p[likely.argmax()]
        variance = (2 * q + difference * (1 - difference)) / pairs
        return abs((second - first) / pairs - difference) / math.sqrt(variance)

    for bound in (low, high):
        assert score(bound) == pytest.approx(1.96, abs=0.02)


def test_no_discordant_pair_is_no_proof_of_equality():
    same = [[True] * 10]
    found = compare_pairs(same, same)
    assert found.resolvable > 0.6
    assert (found.low, found.high) == pytest.approx((-0.277, 0.277), abs=1e-3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(1, 0),
        lambda: wilson(3, 2),
        lambda: wilson(-1, 2),
        lambda: wilson(1, 2, 1.0),
        lambda: mcnemar(-1, 2),
        lambda: smallest_resolvable(0, 0.1),
        lambda: smallest_resolvable(10, 1.1),
        lambda: compare_pairs([], []),
        lambda: compare_pairs([[]], [[]]),
        lambda: compare_pairs([[True]], [[True, False]]),
    ],
)
def test_impossible_counts_are_refused(call):
    with pytest.raises(InputError):
        call()

"""Intervals and paired tests against scipy, and against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from smolvla_edge.errors import InputError
from smolvla_edge.eval.intervals import compare_pairs, mcnemar, smallest_resolvable, wilson

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
    found = compare_pairs(first, second)
    differences = []
    for _ in range(4000):
        rows = random.integers(0, 40, (2, 40))
        differences.append(
            np.mean([np.array(second[t])[rows[t]].mean() - np.array(first[t])[rows[t]].mean()
                     for t in range(2)])
        )  # fmt: skip
    assert (found.low, found.high) == pytest.approx(
        np.quantile(differences, [0.025, 0.975]), abs=0.02
    )


def test_a_comparison_is_the_same_every_time():
    sides = [[True, False, True] * 9], [[False, False, True] * 9]
    assert compare_pairs(*sides) == compare_pairs(*sides)


def test_the_smallest_resolvable_difference_is_found_that_often():
    """With 1600 pairs, 10 % of them discordant, a difference of that size is found in 80 %."""
    pairs, rate = 1600, 0.1
    effect = smallest_resolvable(pairs, rate)
    random = np.random.default_rng(1)
    counts = random.multinomial(
        pairs, [(rate + effect) / 2, (rate - effect) / 2, 1 - rate], size=600
    )
    found = np.mean([mcnemar(int(a), int(b)) < 0.05 for a, b, _ in counts])
    assert 0.72 < found < 0.88


def test_no_discordant_pair_is_no_proof_of_equality():
    same = [[True] * 10]
    assert compare_pairs(same, same).resolvable > 0.2


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

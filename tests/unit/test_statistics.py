"""What is done with statistics: normalising, un-normalising, and telling what lies far outside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from smolvla_edge.preprocess import normalize, unnormalize
from smolvla_edge.statistics import FeatureStatistics, Mode, checked_statistics


def statistics(mode: Mode, **values: Any) -> FeatureStatistics:
    arrays = {name: np.asarray(value, np.float32) for name, value in values.items()}
    eps_in_range = arrays.pop("old", None) is not None
    dim = len(next(iter(arrays.values())))
    return checked_statistics("x", dim, mode, arrays, eps_in_range=eps_in_range, source="test")


class TestArithmetic:
    VALUES = np.array([[0.25, -3.0, 7.0], [1.0, 2.0, 3.0]], np.float32)

    def test_mean_std(self) -> None:
        stats = statistics(Mode.MEAN_STD, mean=[1, 2, 3], std=[0.5, 4, 8])
        expected = (self.VALUES - [1, 2, 3]) / (np.array([0.5, 4, 8]) + 1e-8)
        np.testing.assert_allclose(normalize(self.VALUES, stats), expected, rtol=1e-6)
        np.testing.assert_allclose(
            unnormalize(normalize(self.VALUES, stats), stats), self.VALUES, rtol=1e-5
        )

    @pytest.mark.parametrize("old", [False, True])
    def test_range(self, old: bool) -> None:
        layout = {"old": [1]} if old else {}
        stats = statistics(Mode.QUANTILES, q01=[0, -4, 1], q99=[2, 4, 9], **layout)
        assert stats.eps_in_range is old
        expected = 2 * (self.VALUES - [0, -4, 1]) / np.array([2, 8, 8]) - 1
        np.testing.assert_allclose(normalize(self.VALUES, stats), expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(
            unnormalize(normalize(self.VALUES, stats), stats), self.VALUES, rtol=1e-5
        )

    def test_eps_widens_std_going_in_only(self) -> None:
        stats = replace(statistics(Mode.MEAN_STD, mean=[1, 2, 3], std=[1, 1, 1]), eps=0.5)
        expected = (self.VALUES - [1, 2, 3]) / 1.5
        np.testing.assert_allclose(normalize(self.VALUES, stats), expected, rtol=1e-6)
        np.testing.assert_allclose(unnormalize(self.VALUES, stats), self.VALUES + [1, 2, 3])

    @pytest.mark.parametrize("old", [False, True])
    def test_eps_widens_a_range_in_the_old_layout_only(self, old: bool) -> None:
        layout = {"old": [1]} if old else {}
        stats = replace(statistics(Mode.MIN_MAX, min=[0] * 3, max=[2] * 3, **layout), eps=0.5)
        expected = 2 * self.VALUES / (2.5 if old else 2) - 1
        np.testing.assert_allclose(normalize(self.VALUES, stats), expected, rtol=1e-6)
        np.testing.assert_allclose(unnormalize(self.VALUES, stats), self.VALUES + 1)

    def test_float32_throughout(self) -> None:
        stats = statistics(Mode.MIN_MAX, min=[0, 0, 0], max=[1, 1, 1])
        assert normalize(self.VALUES, stats).dtype == np.float32
        assert unnormalize(self.VALUES, stats).dtype == np.float32


class TestFarOutside:
    def test_mean_std(self) -> None:
        stats = statistics(Mode.MEAN_STD, mean=[0, 0], std=[1, 2])
        assert stats.far_outside("s", np.array([10, -20], np.float32)) == ()
        (flag,) = stats.far_outside("s", np.array([0, -21], np.float32))
        assert flag.startswith("s[1] = -21 is 10.5 standard deviations")

    def test_range(self) -> None:
        stats = statistics(Mode.MIN_MAX, min=[-1], max=[1])
        assert stats.far_outside("s", np.array([3], np.float32)) == ()
        assert len(stats.far_outside("s", np.array([3.1], np.float32))) == 1
        assert len(stats.far_outside("s", np.array([-3.1], np.float32))) == 1

    def test_identity(self) -> None:
        assert FeatureStatistics(Mode.IDENTITY).far_outside("s", np.array([1e9], np.float32)) == ()

"""What the tests of operators share: random operands in guarded memory."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from device_arrays import Guarded, rounded
from numpy.typing import NDArray


class Random:
    """Fresh numbers in every run (fixture `random`); pytest shows the seed when a test fails."""

    def __init__(self, seed: int | None = None) -> None:
        seed = secrets.randbits(32) if seed is None else seed
        print(f"Random({seed})")
        self.generator = np.random.default_rng(seed)

    def floats(self, *shape: int, most: float = 1.0) -> NDArray[np.float32]:
        return self.generator.uniform(-most, most, shape).astype(np.float32)

    def codes(self, *shape: int, low: int, high: int) -> NDArray[np.int8]:
        return self.generator.integers(low, high, shape, np.int8, endpoint=True)


def full(case):
    """A case for a real GPU: the emulator would take minutes for it."""
    return pytest.param(case, marks=pytest.mark.full)


@dataclass
class Input:
    """An array in GPU memory, and what it holds (after rounding to bfloat16)."""

    guarded: Guarded
    values: NDArray

    @property
    def array(self):
        return self.guarded.array


def given(values: NDArray, dtype: str | None = None, *, pitch=None, shift=0) -> Input:
    dtype = dtype or str(values.dtype)
    held = rounded(values) if dtype == "bfloat16" else values
    return Input(Guarded(values.shape, dtype, values, pitch=pitch, shift=shift), held)


@contextmanager
def nothing_else(*inputs: Input | None, out: Guarded) -> Iterator[None]:
    """Around a call: it writes `out` and no byte beside, before or behind any array."""
    yield
    out.check()
    for x in inputs:
        if x is not None and x.guarded is not out:
            x.guarded.check(written=False)

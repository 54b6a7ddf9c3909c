"""Where the flow's starting noise comes from: a seed, always known, always reported.

A seed gives the counter-based (Philox) standard normal of the C++ core, row-major
[chunk, max_action_dim]: the same on every backend, and its first h rows serve a horizon of h.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np

from smolvla_edge.backends.native import load_core
from smolvla_edge.errors import InputError

_WORD = (1 << 64) - 1


def normal(seed: int, rows: int, width: int) -> np.ndarray:
    """Standard normal float32 [rows, width]. Raises BackendError when the C++ core is missing."""
    result: np.ndarray = load_core().philox_normal(seed, rows, width)
    return result


def check_seed(seed: Any) -> int:
    """An integer in [0, 2**64). Raises InputError."""
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)):
        raise InputError(f"seed: expected an integer from 0 to 2**64 - 1, got {seed!r}")
    if not 0 <= seed <= _WORD:
        raise InputError(f"seed: expected an integer from 0 to 2**64 - 1, got {seed}")
    return int(seed)


class SeedSequence:
    """One seed for each call that brings neither noise nor seed.

    The first is the seed of `reset` itself, so that `reset(seed=7)` followed by `predict(...)` is
    `predict(..., seed=7)`; later ones are hashes of it and of the call's number (splitmix64).
    """

    def __init__(self, seed: int | None = None) -> None:
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Start again, from the operating system's randomness when there is no seed."""
        self._seed = secrets.randbits(63) if seed is None else check_seed(seed)
        self._calls = 0

    def next(self) -> int:
        number = self._calls
        self._calls += 1
        return self._seed if number == 0 else _splitmix64(self._seed, number)


def _splitmix64(seed: int, number: int) -> int:
    z = (seed + number * 0x9E3779B97F4A7C15) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)

"""How far a kernel may be from the exact result: counted, not tuned.

A `Bound` is an exact value (float64) and a bound of the error of what a kernel has at that point.
Each of its operations adds what one more rounding may add: a kernel's arithmetic is written down
again, and comes out as the bound of its result. float64's own errors are 2^-29 of float32's.

Unit roundoffs: float32 2^-24, bfloat16 2^-8. Tensor cores add products of bfloat16, which are exact
in float32, in groups: each term is cut to the largest one's last bit, so that a term may lose 2^-23
of the sum of magnitudes so far; a group of 8 products with the running sum are 9 terms and one more
cut of the result (Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021, for sm_80; later
ones add larger groups with more bits). That is 10 / 8 cuts a product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32, BF16, CUT = 2.0**-24, 2.0**-8, 2.0**-23
TINY = 2.0**-126  # below it, fast functions may flush to zero

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Bound:
    value: Float
    error: Float

    @staticmethod
    def exact(value: NDArray) -> Bound:
        value = np.asarray(value, np.float64)
        return Bound(value, np.zeros_like(value))

    @property
    def most(self) -> Float:
        return np.abs(self.value) + self.error

    def rounded(self, unit: float = F32) -> Bound:
        return Bound(self.value, self.error + unit * self.most)

    def off_by(self, error: Float | float) -> Bound:
        return Bound(self.value, self.error + error)

    def __add__(self, other: Bound) -> Bound:
        return Bound(self.value + other.value, self.error + other.error).rounded()

    def __sub__(self, other: Bound) -> Bound:
        return Bound(self.value - other.value, self.error + other.error).rounded()

    def __mul__(self, other: Bound) -> Bound:
        error = self.error * np.abs(other.value) + self.most * other.error
        return Bound(self.value * other.value, error).rounded()

    def through(
        self, f: Callable[[Float], Float], slope: Float | float, relative: Float | float
    ) -> Bound:
        """f, of slopes up to `slope` around here, computed with so large a relative error."""
        value = f(self.value)
        error = slope * self.error
        return Bound(value, error + relative * (np.abs(value) + error) + TINY)

    def stored(self, dtype: str) -> Bound:
        return self.rounded(BF16) if dtype == "bfloat16" else self

    def check(self, got: NDArray) -> None:
        got = np.asarray(got, np.float64)
        assert got.shape == self.value.shape, f"shape {got.shape}, expected {self.value.shape}"
        off = np.abs(got - self.value)
        worst = np.where(np.isnan(off), np.inf, off / (self.error + 1e-300))
        at = np.unravel_index(int(worst.argmax()), worst.shape)
        assert worst[at] <= 1, (
            f"at {at}: got {got[at]!r}, expected {self.value[at]!r} within {self.error[at]:.3g}; "
            f"{int((worst > 1).sum())} of {worst.size} are off"
        )


def product_f32(x: NDArray, w: NDArray) -> Bound:
    """x wᵀ as a chain of fused multiply-adds: a rounding each."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    return Bound(x @ w.T, x.shape[1] * F32 * (np.abs(x) @ np.abs(w).T) * 1.001)


def product_tensor(x: NDArray, w: NDArray, more: int = 0) -> Bound:
    """x wᵀ of bfloat16 on tensor cores; `more` float32 additions of partial sums."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    cuts = (1.25 * x.shape[1] + 2) * CUT + more * F32
    return Bound(x @ w.T, cuts * (np.abs(x) @ np.abs(w).T) * 1.001)


def silu(x: Bound, exact: bool) -> Bound:
    """x / (1 + e^-x). exact: expf is good to 2 ulp, then an addition and a division. Else e^-x
    comes from ex2.approx of a rounded product, so its relative error grows with x, and 1 / . from
    rcp.approx: ptx_numbers.h."""
    relative: Float | float = 6 * F32
    if not exact:
        relative = (2 * np.abs(x.value) + 12) * CUT
    return x.through(lambda v: v / (1 + np.exp(-v)), 1.1, relative)


def gelu_tanh(x: Bound, exact: bool) -> Bound:
    """x (1 + tanh u) / 2 = x / (1 + e^-2u), u = √(2/π) (x + 0.044715 x³) of five roundings.

    With C's tanhf, 1 + tanh u is good to a few 2^-24 absolutely, not relatively; the fast one is
    good relatively, but its argument's roundings are multiplied by 2u."""
    v = x.value
    u = np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)

    def f(v: Float) -> Float:
        return v / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))

    if exact:
        # tanh's derivative falls as e^-2|u|: of u's 5 roundings |u| 5 F32 sech²(u) < 3 F32 is left.
        return x.through(f, 1.2, 2 * F32).off_by((3 + 2 + 2) * F32 * np.abs(v))
    return x.through(f, 1.2, (14 * np.abs(u) + 12) * CUT)


def dot_lanes(count: int) -> int:
    """Roundings in a sum of `count` numbers by a warp: a chain in each lane, then a tree."""
    return -(-count // 32) + 5

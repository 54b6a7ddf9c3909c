"""Fresh random operands, poisoned results, and errors against float64."""

from __future__ import annotations

import os

import torch
from torch import Tensor

SEED = int.from_bytes(os.urandom(4), "little")  # another one in every run, named by a failure
GENERATOR = torch.Generator().manual_seed(SEED)
HALF_AND_FULL = (torch.float16, torch.float32)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=GENERATOR).to(dtype)


def int8(*shape: int) -> Tensor:
    return torch.randint(-127, 128, shape, generator=GENERATOR, dtype=torch.int8)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    """A result to be written whole: what is left out stays NaN."""
    return torch.full(shape, float("nan"), dtype=dtype)


def assert_near(got: Tensor, want: Tensor, magnitude: Tensor, terms: int) -> None:
    """got against float64, by the roundings that lie between.

    magnitude: the sum of the absolute values of what was added up, so that cancellation is not
    held against the kernel; terms: how many float32 additions. One rounding to got's dtype, and the
    epilogue's few in float32.
    """
    assert torch.isfinite(got).all(), f"seed {SEED}: NaN or infinity in the result"
    sums = (terms + 32) * 2.0**-24 * magnitude
    store = torch.finfo(got.dtype).eps * want.abs() + torch.finfo(got.dtype).smallest_normal
    excess = (got.double() - want).abs() - sums - store
    assert (excess <= 0).all(), f"seed {SEED}: over its bound by {excess.max().item():.3e}"

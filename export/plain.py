"""The fused operators of opset 23 in basic ones, for runtimes that know no others (tensorrt.py).

In float16 the sums of norms are computed in float32, and queries are scaled before they meet keys:
neither a mean of squares nor a score outgrows float16 where the result does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MASKED = -6e4
"""A score that may not be read; float16 holds it. A row without any other reads all alike."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scale = 1 / ((wide * wide).mean(-1, keepdim=True) + eps).sqrt()
    return (wide * scale).to(x.dtype) * weight


def number(valid: Tensor) -> Tensor:
    """bool [n] -> float32 [n]; a CumSum would be a loop of n steps in TensorRT."""
    own = torch.arange(valid.shape[0])
    return ((own[None, :] <= own[:, None]) & valid[None, :]).float().sum(1) - 1


def gelu(x: Tensor) -> Tensor:
    """The tanh form. A cube beyond float16 is infinite, and its tanh is 1 as it should be."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))
    return 0.5 * x * (1 + inner.tanh())


def rotate(x: Tensor, rotation: Sequence[Tensor], heads: int) -> Tensor:
    """x [1, n, heads * d], cosines and sines [1, n, d / 2]: the halves of every head turned."""
    cos, sin = (part[:, :, None] for part in rotation)
    first, second = x.unflatten(2, (heads, -1)).chunk(2, -1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return turned.flatten(2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, mask: Tensor | None
) -> Tensor:
    """q [b, n, heads * d], k and v [b, m, kv_heads * d], mask bool [n, m] -> as q.

    The heads that share keys lie one after the other as rows of one product, so that nothing is
    repeated but the mask.
    """
    group = heads // kv_heads
    b, n, width = q.shape
    size = width // heads
    rows = (q * size**-0.5).reshape(b, n, kv_heads, group, size).permute(0, 2, 3, 1, 4)
    keys = k.unflatten(2, (kv_heads, size)).permute(0, 2, 3, 1)
    values = v.unflatten(2, (kv_heads, size)).transpose(1, 2)
    scores = rows.reshape(b, kv_heads, group * n, size) @ keys
    if mask is not None:
        scores = torch.where(torch.cat([mask] * group), scores, MASKED)
    mixed = scores.softmax(-1) @ values
    return mixed.reshape(b, kv_heads, group, n, size).permute(0, 3, 1, 2, 4).reshape(b, n, width)


def denoise(
    x: Tensor, v: Tensor, last: Tensor, row: Tensor, pull_target: Tensor, pull_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """As functions.py has it: x after the step, and v after the pull."""
    time, dt, now, before, gain = row.split(1)
    missing = pull_target - (x - time * v)
    v = v - gain * (missing * pull_weights[:, None])
    return x + dt * (now * v + before * last), v

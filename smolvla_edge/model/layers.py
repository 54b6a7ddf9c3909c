"""Pieces shared by the language model and the action expert.

Every projection computes in the dtype of its own weight, so that one model runs in float32, in
bfloat16, or in the mixture of both that LeRobot's checkpoints ship with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smolvla_edge.kernels import replace_torch
from smolvla_edge.model.coded import CodedWeight

Record = Callable[[str, Tensor], None]
"""Receives each intermediate under the name the golden files give it."""


def ignore(name: str, value: Tensor) -> None:
    """The recorder of somebody who does not want intermediates."""


class Linear(nn.Linear):
    """y = x W^T + b, computed in the weight's dtype whatever the input's.

    `rounds_rows`: the weight stands for integer codes, and each row of x is rounded to int8 as the
    kernels do it, after a multiplication by `input_scale` [in] if there is one. The products are
    then those of the integers, up to float rounding. `coded`, on a GPU: the codes themselves, for
    the kernels that multiply integers.
    """

    rounds_rows = False
    input_scale: Tensor | None = None
    coded: CodedWeight | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.coded is not None and replace_torch(x):
            return self.coded.linear(x, self.input_scale, self.bias, self.weight.dtype)
        if self.input_scale is not None:
            x = x * self.input_scale.to(x.device)
        if self.rounds_rows:
            x = round_rows(x)
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def round_rows(x: Tensor) -> Tensor:
    """Each row to the nearest multiple of its largest magnitude / 127: what codes.round_rows gives,
    bit for bit, as codes times scale."""
    wide = x.float()
    largest = wide.abs().amax(-1, keepdim=True)
    live = largest.isfinite() & (largest >= 2.0**-100)
    # Of a number and a tensor torch makes a product with a reciprocal, which rounds twice.
    most = torch.full_like(largest, 127)
    inverse = torch.where(live, most / largest, 0)
    scale = torch.where(live, largest / most, largest * 0)  # 0, or NaN
    return (torch.where(live, wide * inverse, 0).round() * scale).to(x.dtype)


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps); the mean in float32, the result in the input's dtype."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), no biases."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate = Linear(width, inner, bias=False)
        self.up = Linear(width, inner, bias=False)
        self.down = Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if replace_torch(x) and not self.gate.rounds_rows:
            from smolvla_edge.kernels.swiglu import swiglu

            x = x.to(self.gate.weight.dtype).contiguous()
            return self.down(swiglu(x, self.gate.weight, self.up.weight))
        return self.down(F.silu(self.gate(x)) * self.up(x))


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[B, n, heads * head_dim] -> [B, n, heads, head_dim]."""
    return x.unflatten(-1, (-1, head_dim))


def rope(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotate halves of each head by position.

    x [B, n, heads, head_dim], positions [B, n] int64 -> as x. Angles in float32. The base is
    LeRobot's own 10000; the 100000 of the language model's configuration is never used there.
    """
    half = x.shape[-1] // 2
    exponent = (2.0 / x.shape[-1]) * torch.arange(half, dtype=torch.float32, device=x.device)
    angle = positions[..., None].float() / base**exponent  # [B, n, half]
    sin, cos = angle.sin()[:, :, None], angle.cos()[:, :, None]
    first, second = x.float().split(half, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Grouped-query attention; query head h reads key/value head h // (heads / kv_heads).

    q [B, n, heads, d], k and v [B, m, kv_heads, d], mask [B, n, m] bool -> [B, n, heads * d].
    Scores and softmax in float32 (unless autocast asks for less), the weighted sum in v's dtype. A
    fully masked row becomes the average over all m, as in LeRobot; such a row is a masked token's
    and nobody reads it.
    """
    if replace_torch(q) and q.dtype == k.dtype == v.dtype:
        from smolvla_edge.kernels.attention_gqa import attention_gqa

        q, k, v, mask = (x.contiguous() for x in (q, k, v, mask))
        return attention_gqa(q, k, v, mask=mask).flatten(2)
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = (q.float() @ k.float().transpose(2, 3)) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
    mixed = scores.softmax(-1).to(v.dtype) @ v
    return mixed.transpose(1, 2).flatten(2)


def attention_mass(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """How much each key is looked at: the weights that `attend` gives it, summed over all heads and
    rows -> [B, m] float32."""
    k = k.transpose(1, 2).repeat_interleave(q.shape[2] // k.shape[2], dim=1)
    scores = (q.transpose(1, 2).float() @ k.float().transpose(2, 3)) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
    return scores.softmax(-1).sum((1, 2))


class Projections(nn.Module):
    """The q, k, v, o matrices of one attention block, no biases.

    `kv_in` is the width that k and v read: the block's own width, or the width of the language
    model's cache in a cross-attention block. Without `queries` only k and v exist.
    """

    def __init__(
        self, width: int, heads: int, kv_heads: int, head_dim: int, kv_in: int, queries: bool = True
    ):
        super().__init__()
        self.head_dim = head_dim
        self.k = Linear(kv_in, kv_heads * head_dim, bias=False)
        self.v = Linear(kv_in, kv_heads * head_dim, bias=False)
        if queries:
            self.q = Linear(width, heads * head_dim, bias=False)
            self.o = Linear(heads * head_dim, width, bias=False)

    def heads(self, name: str, x: Tensor) -> Tensor:
        """Project x [B, n, in] by the matrix `name` -> [B, n, heads, head_dim]."""
        return split_heads(getattr(self, name)(x), self.head_dim)


def residual(branch: Tensor, stream: Tensor) -> Tensor:
    """branch + stream in the branch's dtype: LeRobot adds in place into the projection's output."""
    return (branch + stream).to(branch.dtype)

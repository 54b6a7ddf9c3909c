"""Layers as the graphs compute them: weights [in, out], fused norms, rotation and attention.

The reference model (smolvla_edge/model) is written to be compared with; these say the same with
the operators that ONNX has for it. Their parameters are placeholders of the right shape, under
the canonical names: what they hold is never read, `stored.py` writes the real ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smolvla_edge.codes import CodeFormat
from smolvla_edge.export import plain
from smolvla_edge.export.functions import DOMAIN
from smolvla_edge.export.stored import block_of
from smolvla_edge.export.tracing import OPSET

CODED = f"{DOMAIN}::Linear"
"""Stands in a traced graph where a weight of codes is multiplied; `forms.py` takes it out."""


@dataclass(frozen=True)
class Arithmetic:
    """What the graphs compute in, and which weights they hold as codes (by canonical name)."""

    dtype: torch.dtype
    codes: Mapping[str, CodeFormat]
    table: torch.dtype  # of the embedding table: int8 with scales, or as it is stored
    opset: int = OPSET

    @property
    def fused(self) -> bool:
        """Whether norms, rotation and attention are one operator each, and codes may end short of
        a block. Without, plain.py says what they are."""
        return self.opset >= OPSET


def empty(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A placeholder. Memory that is never touched is never there."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)


class Linear(nn.Module):
    """x [..., in] -> [..., out]; x has three dimensions, or the product becomes a Gemm, which
    runtimes do not know with weights of codes."""

    def __init__(
        self, how: Arithmetic, name: str, inputs: int, outputs: int, bias: bool = False
    ) -> None:
        super().__init__()
        self.format = how.codes.get(f"{name}.weight")
        self.missing = 0
        if self.format is not None and not how.fused:
            self.missing = -inputs % block_of(self.format)
        self.weight = empty(inputs + self.missing, outputs, dtype=how.dtype)
        self.bias = empty(outputs, dtype=how.dtype) if bias else None
        if self.format is not None and self.format.input_scale:
            self.weight_input_scale = empty(inputs, dtype=how.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.format is None:
            y = x @ self.weight
        else:
            if self.format.input_scale:
                x = x * self.weight_input_scale
            if self.missing:
                x = nn.functional.pad(x, (0, self.missing))
            shape = (*x.shape[:-1], self.weight.shape[1])
            y = torch.onnx.ops.symbolic(
                CODED, (x, self.weight), dtype=x.dtype, shape=shape, version=1
            )
        return y if self.bias is None else y + self.bias


class RMSNorm(nn.Module):
    def __init__(self, how: Arithmetic, width: int, eps: float) -> None:
        super().__init__()
        self.weight = empty(width, dtype=how.dtype)
        self.eps = eps
        self.fused = how.fused

    def forward(self, x: Tensor) -> Tensor:
        if not self.fused:
            return plain.rms_norm(x, self.weight, self.eps)
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LayerNorm(nn.Module):
    def __init__(self, how: Arithmetic, width: int, eps: float) -> None:
        super().__init__()
        self.weight = empty(width, dtype=how.dtype)
        self.bias = empty(width, dtype=how.dtype)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, how: Arithmetic, name: str, width: int, inner: int) -> None:
        super().__init__()
        self.gate = Linear(how, f"{name}.gate", width, inner)
        self.up = Linear(how, f"{name}.up", width, inner)
        self.down = Linear(how, f"{name}.down", inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Rotation(nn.Module):
    """Positions [n] int64 -> cosines and sines [1, n, head_dim / 2], once for all layers."""

    periods: Tensor

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        half = head_dim // 2
        exponent = (2.0 / head_dim) * torch.arange(half, dtype=torch.float32)
        self.register_buffer("periods", base**exponent, persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angle = (positions[:, None].float() / self.periods)[None]
        return angle.cos().to(dtype), angle.sin().to(dtype)


def number(how: Arithmetic, valid: Tensor) -> Tensor:
    """bool [n] -> how many of them are true before each, itself included, less one."""
    return valid.long().cumsum(0) - 1 if how.fused else plain.number(valid)


def gelu(how: Arithmetic, x: Tensor) -> Tensor:
    """The tanh form."""
    return nn.functional.gelu(x, approximate="tanh") if how.fused else plain.gelu(x)


def rotate(how: Arithmetic, x: Tensor, rotation: Sequence[Tensor], heads: int) -> Tensor:
    """x [1, n, heads * d], its heads' halves turned."""
    if not how.fused:
        return plain.rotate(x, rotation, heads)
    cos, sin = rotation
    return torch.onnx.ops.rotary_embedding(x, cos, sin, num_heads=heads)


def attend(
    how: Arithmetic,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    kv_heads: int,
    mask: Tensor | None = None,
) -> Tensor:
    """q [b, n, heads * d], k and v [b, m, kv_heads * d], mask bool [n, m] -> as q."""
    if not how.fused:
        return plain.attend(q, k, v, heads, kv_heads, mask)
    mixed, _, _, _ = torch.onnx.ops.attention(
        q, k, v, mask, q_num_heads=heads, kv_num_heads=kv_heads
    )
    return mixed


def attend_expert(
    how: Arithmetic, q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, mask: Tensor
) -> Tensor:
    """As `attend`, as a node of our domain."""
    if not how.fused:
        return plain.attend(q, k, v, heads, kv_heads, mask)
    mixed: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::ExpertAttention",
        (q, k, v, mask),
        {"heads": heads, "kv_heads": kv_heads},
        dtype=q.dtype,
        shape=q.shape,
        version=1,
    )
    return mixed


def denoise(
    how: Arithmetic,
    x: Tensor,
    v: Tensor,
    last: Tensor,
    row: Tensor,
    pull_target: Tensor,
    pull_weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """A step of the flow, as a node of our domain: x after it, and v as it was taken."""
    if not how.fused:
        return plain.denoise(x, v, last, row, pull_target, pull_weights)
    after, pulled = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::DenoiseStep",
        (x, v, last, row, pull_target, pull_weights),
        dtypes=(torch.float32, torch.float32),
        shapes=(x.shape, x.shape),
        version=1,
    )
    return after, pulled

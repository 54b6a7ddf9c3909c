"""The graph `flow`: noise to actions, the denoise steps in a loop.

Two traced pieces: `Front` is what all steps share, `Step` is one of them; `loop.py` puts the second
into a Loop behind the first. The first matrix of the time MLP is split: what it makes of actions is
folded into action_in, what it makes of the times is a table with a row for each step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from smolvla_edge.config import ModelConfig
from smolvla_edge.export.layers import (
    Arithmetic,
    Linear,
    RMSNorm,
    Rotation,
    SwiGLU,
    attend_expert,
    denoise,
    rotate,
)
from smolvla_edge.export.prefix import expert_layers
from smolvla_edge.export.times import frequencies
from smolvla_edge.plan import Plan


class Front(nn.Module):
    """noise [h, A], keys and values [layers, n, kv], valid [n], schedule [steps, 5] ->
    what `Step` takes after its own four: moments [steps, width] first."""

    def __init__(self, how: Arithmetic, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.dtype = how.dtype
        self.flow = nn.Module()
        width = config.expert_width
        self.flow.time_in = Linear(how, "flow.time_in", width, width, bias=True)
        self.rotation = Rotation(config.head_dim, config.rope_theta)
        self.register_buffer("frequency", frequencies(config), persistent=False)

    def forward(
        self, noise: Tensor, keys: Tensor, values: Tensor, valid: Tensor, schedule: Tensor
    ) -> tuple[Tensor, ...]:
        angle = schedule[:, :1].double() * self.frequency
        # ONNX Runtime 1.23 has no cosine of doubles: the sine, a quarter turn ahead.
        embedded = torch.cat((angle.sin(), (angle + math.pi / 2).sin()), 1).to(self.dtype)
        moments = self.flow.time_in(embedded[None])[0]
        own = torch.arange(noise.shape[0])
        positions = valid.long().sum() + own
        mask_cross = valid[None, :].expand(noise.shape[0], valid.shape[0])
        mask_self = torch.cat((mask_cross, own[None, :] <= own[:, None]), 1)
        kept = [*keys.to(self.dtype).split(1), *values.to(self.dtype).split(1)]
        return (
            moments,
            *self.rotation(positions, self.dtype),
            *self.rotation(own, self.dtype),
            mask_self,
            mask_cross,
            *kept,
        )


class ExpertLayer(nn.Module):
    """Self: reads the prefix, then the actions' own keys. Cross: reads projections of the prefix,
    and queries are numbered from 0."""

    def __init__(self, how: Arithmetic, name: str, config: ModelConfig, own: bool) -> None:
        super().__init__()
        width, kv = config.expert_width, config.kv_heads * config.head_dim
        self.how = how
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.own = own
        self.norm1 = RMSNorm(how, width, config.rms_eps)
        self.attn = nn.Module()
        inner = config.heads * config.head_dim
        self.attn.q = Linear(how, f"{name}.attn.q", width, inner)
        self.attn.o = Linear(how, f"{name}.attn.o", inner, width)
        if own:
            self.attn.k = Linear(how, f"{name}.attn.k", width, kv)
            self.attn.v = Linear(how, f"{name}.attn.v", width, kv)
        self.norm2 = RMSNorm(how, width, config.rms_eps)
        self.mlp = SwiGLU(how, f"{name}.mlp", width, config.expert_mlp)

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor
    ) -> Tensor:
        normed = self.norm1(x)
        query = rotate(self.how, self.attn.q(normed), rotation, self.heads)
        if self.own:
            own = rotate(self.how, self.attn.k(normed), rotation, self.kv_heads)
            key = torch.cat((key, own), 1)
            value = torch.cat((value, self.attn.v(normed)), 1)
        mixed = attend_expert(self.how, query, key, value, self.heads, self.kv_heads, mask)
        x = x + self.attn.o(mixed)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Step(nn.Module):
    """x and last [h, A] float32, row [5] of the schedule, moment [width], pull_target,
    pull_weights, and what `Front` gave -> x after the step, the velocity it took."""

    def __init__(self, how: Arithmetic, config: ModelConfig, plan: Plan) -> None:
        super().__init__()
        self.how, self.dtype = how, how.dtype
        stride = config.expert_layer_stride
        width = config.expert_width
        self.flow = nn.Module()
        self.flow.action_in = Linear(how, "flow.action_in", config.max_action_dim, width)
        self.time_out = Linear(how, "time_out", width, width, bias=True)
        self.expert = nn.Module()
        self.expert.layers = nn.ModuleDict(
            {
                str(i): ExpertLayer(
                    how, f"expert.layers.{i}", config, config.is_self_layer(i * stride)
                )
                for i in expert_layers(config, plan)
            }
        )
        self.expert.norm = RMSNorm(how, width, config.rms_eps)
        self.action_out = Linear(how, "action_out", width, config.max_action_dim, bias=True)

    def velocity(
        self,
        x: Tensor,
        moment: Tensor,
        rotations: tuple[Tensor, ...],
        masks: tuple[Tensor, ...],
        kept: tuple[Tensor, ...],
    ) -> Tensor:
        tokens = self.flow.action_in(x[None].to(self.dtype)) + moment
        tokens = self.time_out(nn.functional.silu(tokens))
        count = len(self.expert.layers)
        for i, layer in enumerate(self.expert.layers.values()):
            rotation, mask = (rotations[:2], masks[0]) if layer.own else (rotations[2:], masks[1])
            tokens = layer(tokens, kept[i], kept[count + i], rotation, mask)
        out: Tensor = self.action_out(self.expert.norm(tokens))[0].float()
        return out

    def forward(
        self,
        x: Tensor,
        last: Tensor,
        row: Tensor,
        moment: Tensor,
        pull_target: Tensor,
        pull_weights: Tensor,
        cos_self: Tensor,
        sin_self: Tensor,
        cos_cross: Tensor,
        sin_cross: Tensor,
        mask_self: Tensor,
        mask_cross: Tensor,
        *kept: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rotations = (cos_self, sin_self, cos_cross, sin_cross)
        v = self.velocity(x, moment, rotations, (mask_self, mask_cross), kept)
        return denoise(self.how, x, v, last, row, pull_target, pull_weights)

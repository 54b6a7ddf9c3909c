"""The graph `prefix`: image, language and state tokens to what the expert reads of them.

Of the language model it computes keys and values as far as any expert layer reads them, and of the
expert's cross-attention layers the projections of these, which are the same in every denoise step.
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
    attend,
    empty,
    number,
    rotate,
)
from smolvla_edge.plan import Plan


def expert_layers(config: ModelConfig, plan: Plan) -> list[int]:
    """The expert's layers that run under a plan; layer i reads language layer i * stride."""
    end = config.text_layers if plan.exit is None else plan.exit
    stride = config.expert_layer_stride
    return [
        i for i in range(config.expert_layers) if i not in plan.skip.expert and i * stride < end
    ]


class TextLayer(nn.Module):
    """A Llama block, or its keys and values alone."""

    def __init__(self, how: Arithmetic, name: str, config: ModelConfig, keys_only: bool) -> None:
        super().__init__()
        width, kv = config.text_width, config.kv_heads * config.head_dim
        self.how = how
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.keys_only = keys_only
        self.norm1 = RMSNorm(how, width, config.rms_eps)
        self.attn = nn.Module()
        self.attn.k = Linear(how, f"{name}.attn.k", width, kv)
        self.attn.v = Linear(how, f"{name}.attn.v", width, kv)
        if keys_only:
            return
        inner = config.heads * config.head_dim
        self.attn.q = Linear(how, f"{name}.attn.q", width, inner)
        self.attn.o = Linear(how, f"{name}.attn.o", inner, width)
        self.norm2 = RMSNorm(how, width, config.rms_eps)
        self.mlp = SwiGLU(how, f"{name}.mlp", width, config.text_mlp)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [1, n, width] -> x (as it came where keys are all), keys and values [1, n, kv]."""
        normed = self.norm1(x)
        key = rotate(self.how, self.attn.k(normed), rotation, self.kv_heads)
        value = self.attn.v(normed)
        if self.keys_only:
            return x, key, value
        query = rotate(self.how, self.attn.q(normed), rotation, self.heads)
        mixed = attend(self.how, query, key, value, self.heads, self.kv_heads, mask)
        x = x + self.attn.o(mixed)
        return x + self.mlp(self.norm2(x)), key, value


class CrossKeys(nn.Module):
    """The key and value matrices of a cross-attention layer of the expert."""

    def __init__(self, how: Arithmetic, name: str, width: int) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.k = Linear(how, f"{name}.attn.k", width, width)
        self.attn.v = Linear(how, f"{name}.attn.v", width, width)

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return self.attn.k(key), self.attn.v(value)


class Table(nn.Module):
    """Token ids [n] -> rows [n, width]; a table of int8 codes has a scale for each row."""

    def __init__(self, how: Arithmetic, rows: int, width: int) -> None:
        super().__init__()
        self.weight = empty(rows, width, dtype=how.table)
        self.dtype = how.dtype
        if how.table is torch.int8:
            self.weight_scale = empty(rows, dtype=torch.float32)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.weight.index_select(0, ids)
        if rows.dtype is not torch.int8:
            return rows.to(self.dtype)
        scales = self.weight_scale.index_select(0, ids)
        return (rows.float() * scales[:, None]).to(self.dtype)


class Prefix(nn.Module):
    """See the table of graphs in docs/onnx.md for inputs and outputs."""

    def __init__(self, how: Arithmetic, config: ModelConfig, plan: Plan) -> None:
        super().__init__()
        self.config = config
        self.how = how
        self.dtype = how.dtype
        self.running = expert_layers(config, plan)
        stride = config.expert_layer_stride
        last = max((i * stride for i in self.running), default=0)
        self.text = nn.Module()
        self.text.embed = Table(how, config.vocab, config.text_width)
        self.text.layers = nn.ModuleList(
            TextLayer(how, f"text.layers.{i}", config, keys_only=i == last or i in plan.skip.vlm)
            for i in range(last + 1)
        )
        self.state_in = Linear(how, "state_in", config.max_state_dim, config.text_width, bias=True)
        self.expert = nn.Module()
        kv = config.kv_heads * config.head_dim
        self.expert.layers = nn.ModuleDict(
            {
                str(i): CrossKeys(how, f"expert.layers.{i}", kv)
                for i in self.running
                if not config.is_self_layer(i * stride)
            }
        )
        self.rotation = Rotation(config.head_dim, config.rope_theta)

    def forward(
        self,
        image_tokens: Tensor,
        camera_mask: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        state: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        images, images_valid = self.images(image_tokens.to(self.dtype), camera_mask)
        words = self.text.embed(tokens)[None] * math.sqrt(self.config.text_width)
        own = self.state_in(state[None, None].to(self.dtype))
        x = torch.cat((images, words, own), 1)
        valid = torch.cat((images_valid, token_mask, torch.ones(1, dtype=torch.bool)))
        rotation = self.rotation(number(self.how, valid), self.dtype)
        is_state = torch.arange(x.shape[1]) == x.shape[1] - 1
        # Only valid tokens are read, and the state by itself alone. Masked tokens read too, unlike
        # LeRobot's: nobody reads what they become, and no row is without anything to read.
        mask = valid[None, :] & (is_state[:, None] | ~is_state[None, :])
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        for i, layer in enumerate(self.text.layers):
            x, *keys_values = layer(x, rotation, mask)
            kept[i] = keys_values[0], keys_values[1]
        read = []
        for i in self.running:
            key, value = kept[i * self.config.expert_layer_stride]
            if str(i) in self.expert.layers:
                key, value = self.expert.layers[str(i)](key, value)
            read.append((key, value))
        keys, values = (torch.cat(both) for both in zip(*read, strict=True))
        return keys.float(), values.float(), valid

    def images(self, image_tokens: Tensor, camera_mask: Tensor) -> tuple[Tensor, Tensor]:
        """[cameras, t, W] and [cameras] -> all of them one after the other, [1, n, W], and which
        are valid, [n]. Special tokens stay valid when their camera is masked."""
        cameras, count, width = image_tokens.shape
        x = image_tokens * math.sqrt(width)
        valid = camera_mask[:, None].expand(cameras, count)
        if self.config.add_image_special_tokens:
            fake, whole = self.config.fake_token_id, self.config.global_token_id
            special = self.text.embed(torch.tensor([fake, whole]))
            before = special[None].expand(cameras, 2, width)
            after = special[None, :1].expand(cameras, 1, width)
            always = torch.ones_like(camera_mask)[:, None]
            x = torch.cat((before, x, after), 1)
            valid = torch.cat((always, always, valid, always), 1)
        return x.reshape(1, -1, width), valid.reshape(-1)

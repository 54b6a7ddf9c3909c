"""The action expert: a narrow transformer over the action tokens that reads the prefix's cache."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from smolvla_edge.config import ModelConfig
from smolvla_edge.model.layers import (
    Projections,
    Record,
    RMSNorm,
    SwiGLU,
    attend,
    attention_mass,
    ignore,
    residual,
    rope,
)
from smolvla_edge.model.prefix import Cache


class ExpertLayer(nn.Module):
    """A block that attends to the prefix, in one of two ways.

    Self: keys and values are the prefix's (from the cache) followed by the actions' own; action
    tokens are causal among themselves and numbered after the valid prefix tokens.
    Cross: keys and values are projections of the cache, keys already rotated; action tokens do not
    see each other, and their queries are numbered from 0.
    """

    def __init__(self, config: ModelConfig, self_attention: bool):
        super().__init__()
        width = config.expert_width
        self.base = config.rope_theta
        self.self_attention = self_attention
        kv_in = width if self_attention else config.kv_heads * config.head_dim
        self.norm1 = RMSNorm(width, config.rms_eps)
        self.attn = Projections(width, config.heads, config.kv_heads, config.head_dim, kv_in)
        self.norm2 = RMSNorm(width, config.rms_eps)
        self.mlp = SwiGLU(width, config.expert_mlp)

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Tensor,
        mask: Tensor,
        looks: list[Tensor] | None = None,
    ) -> Tensor:
        """x [B, h, width]; key, value [B, n, kv_heads, d]; mask [B, h, n + h] -> as x. A cross
        layer adds to `looks` how much it looked at each token of the prefix, [B, n]."""
        normed = self.norm1(x)
        query = self.attn.heads("q", normed)
        if self.self_attention:
            own = rope(self.attn.heads("k", normed), positions, self.base)
            key = torch.cat((key, own), 1)
            value = torch.cat((value, self.attn.heads("v", normed)), 1)
        else:
            positions = positions - positions[:, :1]
            mask = mask[:, :, : key.shape[1]]
            key = self.attn.heads("k", key.flatten(2))
            value = self.attn.heads("v", value.flatten(2))
        query = rope(query, positions, self.base)
        if looks is not None and not self.self_attention:
            looks.append(attention_mass(query, key, mask))
        mixed = attend(query, key, value, mask)
        x = residual(self.attn.o(mixed), x)
        return residual(self.mlp(self.norm2(x)), x)


class Expert(nn.Module):
    """Action tokens [B, h, expert_width] and the cache -> features [B, h, expert_width].

    skip: layers left out.  added: by layer, what it last added to the tokens, float32; layers of
    `reuse` are not computed and add that again, the others renew it.  looks: see ExpertLayer.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        # Which language layer each expert layer reads; language layers without one are skipped.
        self.reads = [i for i in range(config.text_layers) if config.expert_layer_of(i) is not None]
        self.layers = nn.ModuleList(
            ExpertLayer(config, self_attention=config.is_self_layer(i)) for i in self.reads
        )
        self.norm = RMSNorm(config.expert_width, config.rms_eps)

    def forward(
        self,
        x: Tensor,
        cache: Cache,
        record: Record = ignore,
        skip: Collection[int] = (),
        reuse: Collection[int] = (),
        added: dict[int, Tensor] | None = None,
        looks: list[Tensor] | None = None,
    ) -> Tensor:
        batch, rows = x.shape[:2]
        causal = torch.ones(rows, rows, dtype=torch.bool, device=x.device).tril()
        mask = torch.cat(
            (cache.valid[:, None].expand(batch, rows, -1), causal.expand(batch, -1, -1)), 2
        )
        positions = cache.valid.sum(1, keepdim=True) + torch.arange(rows, device=x.device)
        record("mid.step0.att_2d_masks", mask)
        record("mid.step0.position_ids", positions)
        for i, layer in enumerate(self.layers):
            if self.reads[i] >= len(cache.layers):  # beyond the exit
                break
            if added is not None and i in reuse:
                x = x + added[i]
            elif i not in skip:
                before = x
                x = layer(x, *cache.layers[self.reads[i]], positions, mask, looks)
                if added is not None:
                    added[i] = x.float() - before.float()
            record(f"mid.step0.expert_layer{i}", x)
        x = self.norm(x)
        record("mid.step0.expert_out_normed", x)
        return x

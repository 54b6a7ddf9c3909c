"""The prefix: image, language and state tokens through the language model, kept as keys/values."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smolvla_edge.config import ModelConfig
from smolvla_edge.model.layers import (
    Linear,
    Projections,
    Record,
    RMSNorm,
    SwiGLU,
    attend,
    ignore,
    residual,
    rope,
)


@dataclass
class Prefix:
    """Embedded prefix: `embeddings` [B, n, width], `valid` [B, n] bool, `block` [n] bool.

    `block` is set on the state token: it reads everything before it, nothing before reads it.
    """

    embeddings: Tensor
    valid: Tensor
    block: Tensor


@dataclass
class Cache:
    """What the expert needs of the prefix: per language layer its key (after RoPE) and value.

    `layers` holds (key, value), each [B, n, kv_heads, head_dim]; `valid` [B, n] bool.
    """

    layers: list[tuple[Tensor, Tensor]]
    valid: Tensor


def attention_mask(valid: Tensor, block: Tensor) -> Tensor:
    """valid [B, n], block [n] -> [B, n, n]: may row i read column j.

    A token reads its own block and the blocks before it, and only valid tokens read or are read.
    """
    number = block.cumsum(0)
    return (number[None, :] <= number[:, None]) & valid[:, None, :] & valid[:, :, None]


class TextLayer(nn.Module):
    """A Llama block. With `keys_only` it ends after keys and values.

    Nothing after the last layer's keys and values reaches an action.
    """

    def __init__(self, config: ModelConfig, keys_only: bool):
        super().__init__()
        width = config.text_width
        self.base = config.rope_theta
        self.norm1 = RMSNorm(width, config.rms_eps)
        self.attn = Projections(
            width, config.heads, config.kv_heads, config.head_dim, width, queries=not keys_only
        )
        self.keys_only = keys_only
        if not keys_only:
            self.norm2 = RMSNorm(width, config.rms_eps)
            self.mlp = SwiGLU(width, config.text_mlp)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor, skipped: bool = False
    ) -> tuple[Tensor | None, tuple[Tensor, Tensor]]:
        """x [B, n, width] -> (x or None, (key, value)); a skipped layer leaves x as it is."""
        normed = self.norm1(x)
        key = rope(self.attn.heads("k", normed), positions, self.base)
        value = self.attn.heads("v", normed)
        if self.keys_only:
            return None, (key, value)
        if skipped:
            return x, (key, value)
        query = rope(self.attn.heads("q", normed), positions, self.base)
        x = residual(self.attn.o(attend(query, key, value, mask)), x)
        return residual(self.mlp(self.norm2(x)), x), (key, value)


class TextModel(nn.Module):
    """The language model's lower layers.

    `dead` keeps the parts that never reach an action (the end of the last layer that the expert
    reads, all layers after it, the final norm), to compare them with LeRobot's.
    """

    def __init__(self, config: ModelConfig, dead: bool):
        super().__init__()
        last = config.last_used_text_layer
        count = config.text_layers if dead else last + 1
        self.embed = nn.Embedding(config.vocab, config.text_width)
        self.layers = nn.ModuleList(
            TextLayer(config, keys_only=not dead and i == last) for i in range(count)
        )
        if dead:
            self.norm = RMSNorm(config.text_width, config.rms_eps)
        self.dead = dead

    def forward(
        self,
        prefix: Prefix,
        record: Record = ignore,
        skip: Collection[int] = (),
        exit: int | None = None,
    ) -> Cache:
        """Run the prefix -> keys and values of every layer, those of `skip` too; of the first
        `exit` layers alone where it is given."""
        mask = attention_mask(prefix.valid, prefix.block)
        # Masked tokens take no position: they repeat the last one (-1 when they come first).
        positions = prefix.valid.cumsum(1) - 1
        record("mid.prefix_att_2d_masks", mask)
        record("mid.prefix_position_ids", positions)
        x = prefix.embeddings
        layers = []
        for i, layer in enumerate(self.layers[:exit]):
            x, key_value = layer(x, positions, mask, i in skip or i + 1 == exit)
            layers.append(key_value)
            record(f"out.kv.{i}.key", key_value[0].transpose(1, 2))
            record(f"out.kv.{i}.value", key_value[1].transpose(1, 2))
            if x is not None:
                record(f"mid.prefix_layer{i}", x)
        if self.dead:
            record("mid.prefix_out_normed_unused", self.norm(x))
        return Cache(layers, prefix.valid)


def image_places(config: ModelConfig, image_tokens: Sequence[Tensor]) -> list[slice]:
    """Where the tokens of each camera lie in what `embed_prefix` makes of them."""
    before, after = (2, 1) if config.add_image_special_tokens else (0, 0)
    places, end = [], 0
    for image in image_tokens:
        start = end + before
        places.append(slice(start, start + image.shape[1]))
        end = places[-1].stop + after
    return places


def embed_prefix(
    config: ModelConfig,
    embed: nn.Embedding,
    state_in: Linear,
    image_tokens: Sequence[Tensor],
    camera_mask: Tensor,
    tokens: Tensor,
    token_mask: Tensor,
    state: Tensor,
    length: int = 0,
) -> Prefix:
    """Lay out [image tokens of each camera | language tokens | state token | padding].

    image_tokens: per camera [B, t, width]; camera_mask [B, cameras] bool; tokens and token_mask
    [B, L]; state [B, max_state_dim]. Images and language are scaled by sqrt(width), the state and
    the special tokens around an image are not. Special tokens are valid even if their camera is
    masked. `length` pads the sequence with masked zeros (LeRobot's `prefix_length`).
    """
    batch = state.shape[0]
    pieces: list[Tensor] = []
    valid: list[Tensor] = []

    def special(*ids: int) -> None:
        if config.add_image_special_tokens:
            pieces.append(embed(torch.tensor([ids] * batch, device=state.device)))
            valid.append(torch.ones(batch, len(ids), dtype=torch.bool, device=state.device))

    for i, image in enumerate(image_tokens):
        special(config.fake_token_id, config.global_token_id)
        # The factor is a tensor of the image's dtype: in bfloat16 sqrt(960) is 31, as in LeRobot.
        pieces.append(image * torch.tensor(image.shape[-1] ** 0.5, dtype=image.dtype))
        valid.append(camera_mask[:, i : i + 1].expand(batch, image.shape[1]))
        special(config.fake_token_id)
    pieces.append(embed(tokens) * math.sqrt(config.text_width))
    valid.append(token_mask)
    pieces.append(state_in(state)[:, None])
    valid.append(torch.ones(batch, 1, dtype=torch.bool, device=state.device))

    embeddings, mask = torch.cat(pieces, 1), torch.cat(valid, 1)
    block = torch.zeros(mask.shape[1], dtype=torch.bool, device=state.device)
    block[-1] = True
    missing = max(0, length - mask.shape[1])
    return Prefix(
        nn.functional.pad(embeddings, (0, 0, 0, missing)),
        nn.functional.pad(mask, (0, missing)),
        nn.functional.pad(block, (0, missing)),
    )

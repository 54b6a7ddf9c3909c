"""Frames to image tokens: letterbox, vision tower (SigLIP), pixel shuffle.

A pass over a part of the patches (`rows`) reads the keys and values that a pass over all of them
kept (`KeptKeys`): the token cache, see token_cache.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smolvla_edge.config import ModelConfig
from smolvla_edge.errors import InputError
from smolvla_edge.model.layers import Linear, Record, ignore, split_heads


def inner_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a frame in its letterbox `size` (width, height), at the lower right of it.
    The rest is padding."""
    ratio = max(width / size[0], height / size[1])
    return int(height / ratio), int(width / ratio)


def letterbox(images: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Fit images into `size` (width, height) and map [0,1] to [-1,1].

    images [B, 3, h, w] float in [0,1] -> [B, 3, height, width]. Bilinear without antialiasing, the
    aspect kept, black on the left and the top. A size of None leaves the frame as it is.
    """
    if size is not None:
        width, height = size
        new_height, new_width = inner_size(images.shape[2], images.shape[3], size)
        images = F.interpolate(
            images, size=(new_height, new_width), mode="bilinear", align_corners=False
        )
        left, top = max(0, width - new_width), max(0, height - new_height)
        images = F.pad(images, (left, 0, top, 0))
    return images * 2.0 - 1.0


def patch_positions(rows: int, columns: int, side: int, dtype: torch.dtype) -> Tensor:
    """Row of the position table for each patch of a rows x columns grid -> [rows * columns] int64.

    The table is a side x side picture of the unit square; each patch takes the cell its corner
    falls in. On the full grid this is 0, 1, 2, ... The float32 arithmetic is transformers' own:
    where a corner meets a cell's edge, rounding decides.
    """
    edges = torch.arange(1 / side, 1.0, 1 / side)

    def cells(count: int) -> Tensor:
        corner = torch.arange(count, dtype=torch.float32) * (1.0 / torch.tensor(count))
        return torch.bucketize(corner.clamp(max=1.0 - 1e-6).to(dtype), edges, right=True)

    return (cells(rows)[:, None] * side + cells(columns)).flatten()


def pixel_shuffle(x: Tensor, scale: int) -> Tensor:
    """Stack each scale x scale block of patches into one token.

    x [B, n, width] -> [B, n / scale^2, width * scale^2]; within a token the block's rows vary
    slowest. The grid is taken to be square, sqrt(n) on a side, as in transformers.
    """
    side = int(x.shape[1] ** 0.5)
    if side * side != x.shape[1] or side % scale:
        raise InputError(
            f"expected a square number of patches whose side divides by {scale}, got "
            f"{x.shape[1]} patches; choose a resize size that gives such a grid"
        )
    x = x.view(x.shape[0], side // scale, scale, side // scale, scale, x.shape[2])
    return x.transpose(2, 3).flatten(3).flatten(1, 2)


def block_rows(blocks: Tensor, side: int, scale: int) -> Tensor:
    """The patches of some tokens, token by token as the pixel shuffle stacks them.

    blocks [m] int64: tokens in raster order; side: patches along a side -> [m * scale^2] int64.
    """
    within = torch.arange(scale, device=blocks.device)
    row = (blocks // (side // scale) * scale)[:, None, None] + within[:, None]
    column = (blocks % (side // scale) * scale)[:, None, None] + within
    return (row * side + column).flatten()


KeyValue = tuple[Tensor, Tensor]  # each [B, heads, n, d]
Read = Callable[[Tensor, Tensor], KeyValue]  # what a pass computed -> what its queries read


class KeptKeys:
    """Keys and values of every layer and patch, kept from one pass to the next.

    A pass over some of the patches, `rows`, replaces theirs and reads all of them.
    """

    def __init__(self) -> None:
        self._layers: dict[int, KeyValue] = {}

    def update(self, layer: int, rows: Tensor | None, key: Tensor, value: Tensor) -> KeyValue:
        """See `Read`; rows None: the pass is over all patches."""
        if rows is not None:
            kept_key, kept_value = self._layers[layer]
            key, value = kept_key.index_copy(2, rows, key), kept_value.index_copy(2, rows, value)
        self._layers[layer] = key, value
        return key, value


def as_computed(key: Tensor, value: Tensor) -> KeyValue:
    """Nothing is kept: queries read the pass's own keys and values."""
    return key, value


class VisionAttention(nn.Module):
    """Full self-attention with biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.head_dim = width // heads
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.o = Linear(width, width)

    def forward(self, x: Tensor, read: Read = as_computed) -> Tensor:
        q, k, v = (
            split_heads(m(x), self.head_dim).transpose(1, 2) for m in (self.q, self.k, self.v)
        )
        k, v = read(k, v)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    """down(gelu_tanh(up(x)))."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.up = Linear(width, inner)
        self.down = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class VisionLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.vision_width
        self.norm1 = nn.LayerNorm(width, eps=config.vision_eps)
        self.attn = VisionAttention(width, config.vision_heads)
        self.norm2 = nn.LayerNorm(width, eps=config.vision_eps)
        self.mlp = VisionMLP(width, config.vision_mlp)

    def forward(self, x: Tensor, read: Read = as_computed) -> Tensor:
        x = x + self.attn(self.norm1(x), read)
        return x + self.mlp(self.norm2(x))


class VisionTower(nn.Module):
    """Pixels [B, 3, H, W] in [-1,1] -> patch features [B, (H/p)(W/p), vision_width].

    skip: layers left out.  kept: receives keys and values; with `rows` it gives those of the other
    patches, and only the features of these come back, in their order.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, patch = config.vision_width, config.patch_size
        self.side = config.image_size // patch
        self.patch = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.position = nn.Embedding(self.side**2, width)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.vision_layers))
        self.norm = nn.LayerNorm(width, eps=config.vision_eps)

    def embed(self, pixels: Tensor) -> Tensor:
        """Each patch by itself -> [B, (H/p)(W/p), vision_width]."""
        grid = self.patch(pixels.to(self.patch.weight.dtype))
        rows = patch_positions(grid.shape[2], grid.shape[3], self.side, grid.dtype)
        return grid.flatten(2).transpose(1, 2) + self.position(rows.to(grid.device))

    def forward(
        self,
        pixels: Tensor,
        record: Record = ignore,
        index: int = 0,
        skip: Collection[int] = (),
        kept: KeptKeys | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        x = self.embed(pixels)
        if rows is not None:
            x = x[:, rows]
        record(f"mid.vision_embed.{index}", x)
        for i, layer in enumerate(self.layers):
            if i not in skip:
                x = layer(x, as_computed if kept is None else partial(kept.update, i, rows))
            record(f"mid.vision_layer{i}.{index}", x)
        x = self.norm(x)
        record(f"out.vision.{index}", x)
        return x

"""The graph `vision`: letterboxed frames, cameras as the batch, to image tokens."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from smolvla_edge.config import ModelConfig
from smolvla_edge.export.layers import Arithmetic, LayerNorm, Linear, attend, empty, gelu
from smolvla_edge.model.vision import pixel_shuffle


class Attention(nn.Module):
    """Full self-attention with biases."""

    def __init__(self, how: Arithmetic, name: str, width: int, heads: int) -> None:
        super().__init__()
        self.how, self.heads = how, heads
        for part in "qkvo":
            self.add_module(part, Linear(how, f"{name}.{part}", width, width, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        mixed: Tensor = self.o(attend(self.how, q, k, v, self.heads, self.heads))
        return mixed


class MLP(nn.Module):
    def __init__(self, how: Arithmetic, name: str, width: int, inner: int) -> None:
        super().__init__()
        self.how = how
        self.up = Linear(how, f"{name}.up", width, inner, bias=True)
        self.down = Linear(how, f"{name}.down", inner, width, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down(gelu(self.how, self.up(x)))
        return down


class Layer(nn.Module):
    def __init__(self, how: Arithmetic, name: str, config: ModelConfig) -> None:
        super().__init__()
        width = config.vision_width
        self.norm1 = LayerNorm(how, width, config.vision_eps)
        self.attn = Attention(how, f"{name}.attn", width, config.vision_heads)
        self.norm2 = LayerNorm(how, width, config.vision_eps)
        self.mlp = MLP(how, f"{name}.mlp", width, config.vision_mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Tower(nn.Module):
    """pixels [cameras, 3, S, S] -> [cameras, patches, width]. `position` holds the rows of the
    table that these patches take."""

    def __init__(
        self, how: Arithmetic, config: ModelConfig, patches: int, skip: Collection[int]
    ) -> None:
        super().__init__()
        width, patch = config.vision_width, config.patch_size
        self.patch = nn.Module()
        self.patch.weight = empty(width, 3, patch, patch, dtype=how.dtype)
        self.patch.bias = empty(width, dtype=how.dtype)
        self.position = nn.Module()
        self.position.weight = empty(patches, width, dtype=how.dtype)
        self.layers = nn.ModuleDict(
            {
                str(i): Layer(how, f"vision.layers.{i}", config)
                for i in range(config.vision_layers)
                if i not in skip
            }
        )
        self.norm = LayerNorm(how, width, config.vision_eps)
        self.stride = patch

    def forward(self, pixels: Tensor) -> Tensor:
        grid = nn.functional.conv2d(pixels, self.patch.weight, self.patch.bias, stride=self.stride)
        x = grid.flatten(2).transpose(1, 2) + self.position.weight
        for layer in self.layers.values():
            x = layer(x)
        normed: Tensor = self.norm(x)
        return normed


class Vision(nn.Module):
    """pixels float32 [cameras, 3, S, S] in [-1, 1] -> image tokens float32 [cameras, t, W]."""

    def __init__(
        self, how: Arithmetic, config: ModelConfig, patches: int, skip: Collection[int]
    ) -> None:
        super().__init__()
        self.dtype = how.dtype
        self.scale = config.scale_factor
        self.vision = Tower(how, config, patches, skip)
        inputs = config.vision_width * config.scale_factor**2
        self.connector = Linear(how, "connector", inputs, config.text_width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.vision(pixels.to(self.dtype))
        tokens: Tensor = self.connector(pixel_shuffle(patches, self.scale))
        return tokens.float()

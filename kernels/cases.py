"""Every launch that SmolVLA makes of these kernels: what is compiled ahead, gated, tuned and timed.

Sizes are those of the base configuration with one camera and 48 words: 1024 patches, 113 rows of
prefix, 50 actions. Rows and keys are arguments of the kernels, so other prefixes are the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from smolvla_edge.kernels import (
    attention_gqa,
    flow_step,
    linear_w4a16,
    linear_w8a8,
    rmsnorm_linear,
    swiglu,
)
from smolvla_edge.kernels.launch import Launch, Tensor, torch
from smolvla_edge.kernels.tiles import Tile, cdiv, power_of_two, shape_key

PATCHES, PREFIX, CHUNK, HEAD_DIM, ACTION_DIM = 1024, 113, 50, 64, 32
GROUP_SIZE = 64


class Operands:
    """Tensors of a device: random ones, or on "meta" shapes and dtypes alone."""

    def __init__(self, device: str, dtype: torch.dtype):
        self.device, self.dtype = device, dtype

    def floats(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype or self.dtype)

    def bytes(self, *shape: int) -> Tensor:
        return torch.randint(0, 256, shape, device=self.device, dtype=torch.uint8)

    def int8(self, *shape: int) -> Tensor:
        return torch.randint(-127, 128, shape, device=self.device, dtype=torch.int8)


@dataclass(frozen=True)
class Case:
    """One kernel at one shape. key: of tiles.py; flops and weight_bytes: of one launch."""

    kernel: str
    name: str
    key: str
    launch: Callable[[Operands, Tile | None], Launch]
    flops: float = 0.0
    weight_bytes: int = 0

    @property
    def text(self) -> str:
        return f"{self.kernel}: {self.name}"


def _w4a16(name: str, rows: int, depth: int, out: int, residual: bool = False) -> Case:
    groups = cdiv(depth, GROUP_SIZE)

    def launch(make: Operands, tile: Tile | None) -> Launch:
        return linear_w4a16.launch(
            make.floats(rows, depth), make.bytes(out, (depth + 1) // 2),
            make.floats(out, groups, dtype=torch.float16), GROUP_SIZE, None, "none",
            make.floats(rows, out) if residual else None, None, make.floats(rows, out), tile,
        )  # fmt: skip

    nbytes = out * ((depth + 1) // 2 + 2 * groups)
    return _linear("linear_w4a16", name, rows, depth, out, nbytes, launch)


def _w8a8(
    name: str, rows: int, depth: int, out: int, activation: str = "none", residual: bool = False,
    bias: bool = False,
) -> Case:  # fmt: skip
    def launch(make: Operands, tile: Tile | None) -> Launch:
        return linear_w8a8.launch(
            make.int8(rows, depth), make.floats(rows, dtype=torch.float32), make.int8(out, depth),
            make.floats(out, dtype=torch.float32), make.floats(out) if bias else None, activation,
            make.floats(rows, out) if residual else None, make.floats(rows, out), tile,
        )  # fmt: skip

    return _linear("linear_w8a8", name, rows, depth, out, out * (depth + 4), launch)


def _round_rows(name: str, rows: int, depth: int) -> Case:
    def launch(make: Operands, tile: Tile | None) -> Launch:
        scales = make.floats(rows, dtype=torch.float32)
        return linear_w8a8.launch_round_rows(
            make.floats(rows, depth), None, make.int8(rows, depth), scales, tile
        )

    return Case("round_rows", name, shape_key((rows, depth)), launch)


def _rmsnorm_linear(name: str, rows: int, depth: int, out: int) -> Case:
    def launch(make: Operands, tile: Tile | None) -> Launch:
        return rmsnorm_linear.launch(
            make.floats(rows, depth), make.floats(depth), make.floats(out, depth), None, 1e-5,
            make.floats(rows, out), tile,
        )  # fmt: skip

    return _linear("rmsnorm_linear", name, rows, depth, out, 2 * out * depth, launch)


def _swiglu(name: str, rows: int, depth: int, out: int) -> Case:
    def launch(make: Operands, tile: Tile | None) -> Launch:
        return swiglu.launch(
            make.floats(rows, depth), make.floats(out, depth), make.floats(out, depth),
            make.floats(rows, out), tile,
        )  # fmt: skip

    # Its key has the columns of one of the two matrices; the work is that of both.
    key = shape_key((rows, depth, out))
    return Case("swiglu", name, key, launch, 4.0 * rows * depth * out, 4 * out * depth)


def _linear(
    kernel: str, name: str, rows: int, depth: int, out: int, nbytes: int,
    launch: Callable[[Operands, Tile | None], Launch],
) -> Case:  # fmt: skip
    key = shape_key((rows, depth, out))
    return Case(kernel, name, key, launch, 2.0 * rows * depth * out, nbytes)


def _attention(name: str, rows: int, keys: int, heads: int, kv_heads: int, lengths: bool) -> Case:
    def launch(make: Operands, tile: Tile | None) -> Launch:
        per_row = torch.full((1, rows), keys, dtype=torch.int32, device=make.device)
        return attention_gqa.launch(
            make.floats(1, rows, heads, HEAD_DIM), make.floats(1, keys, kv_heads, HEAD_DIM),
            make.floats(1, keys, kv_heads, HEAD_DIM), per_row if lengths else None, None,
            make.floats(1, rows, heads, HEAD_DIM), tile,
        )  # fmt: skip

    key = shape_key((rows, power_of_two(keys), heads, kv_heads, HEAD_DIM))
    return Case("attention_gqa", name, key, launch, 4.0 * rows * keys * heads * HEAD_DIM)


def _flow_step(name: str, guided: bool) -> Case:
    def launch(make: Operands, tile: Tile | None) -> Launch:
        x, v, previous, out = (
            make.floats(CHUNK, ACTION_DIM, dtype=torch.float32) for _ in range(4)
        )
        weights = make.floats(CHUNK, dtype=torch.float32)
        return flow_step.launch(
            x, v, previous if guided else None, weights if guided else None, -0.1, 1.0, 1.0, out,
            tile,
        )  # fmt: skip

    return Case("flow_step", name, shape_key((CHUNK, ACTION_DIM)), launch)


CASES = (
    _w4a16("expert qkv", CHUNK, 720, 1600),
    _w4a16("expert cross q", CHUNK, 720, 960),
    _w4a16("expert out", CHUNK, 960, 720, residual=True),
    _w4a16("expert gate and up", CHUNK, 720, 4096),
    _w4a16("expert down", CHUNK, 2048, 720, residual=True),
    _w8a8("vision qkv", PATCHES, 768, 2304, bias=True),
    _w8a8("vision out", PATCHES, 768, 768, bias=True, residual=True),
    _w8a8("vision up", PATCHES, 768, 3072, activation="gelu_tanh", bias=True),
    _w8a8("vision down", PATCHES, 3072, 768, bias=True, residual=True),
    _w8a8("connector", 64, 12288, 960),
    _w8a8("prefix qkv", PREFIX, 960, 1600),
    _w8a8("prefix out", PREFIX, 960, 960, residual=True),
    _w8a8("prefix gate and up", PREFIX, 960, 5120),
    _w8a8("prefix down", PREFIX, 2560, 960, residual=True),
    _round_rows("vision", PATCHES, 768),
    _round_rows("vision down", PATCHES, 3072),
    _round_rows("connector", 64, 12288),
    _round_rows("prefix", PREFIX, 960),
    _round_rows("prefix down", PREFIX, 2560),
    _round_rows("expert", CHUNK, 720),
    _round_rows("expert down", CHUNK, 2048),
    _attention("vision", PATCHES, PATCHES, 12, 12, lengths=False),
    _attention("prefix", PREFIX, PREFIX, 15, 5, lengths=True),
    _attention("expert", CHUNK, PREFIX + CHUNK, 15, 5, lengths=True),
    _rmsnorm_linear("prefix qkv", PREFIX, 960, 1600),
    _rmsnorm_linear("expert qkv", CHUNK, 720, 1600),
    _rmsnorm_linear("expert cross q", CHUNK, 720, 960),
    _swiglu("prefix", PREFIX, 960, 2560),
    _swiglu("expert", CHUNK, 720, 2048),
    _flow_step("plain", guided=False),
    _flow_step("guided", guided=True),
)

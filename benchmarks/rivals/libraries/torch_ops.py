"""The ways in which torch computes a linear layer and attention on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

Variants = dict[str, tuple[str, Callable[[], Any]]]
HEAD_DIM = 64
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@lru_cache(maxsize=1)
def linear_data(rows: int, depth: int, out: int) -> tuple[Tensor, Tensor]:
    """x [rows, depth], weight [out, depth], float32 values that bfloat16 holds exactly."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, depth, generator=generator)
    weight = torch.randn(out, depth, generator=generator) / depth**0.5
    return x.bfloat16().float(), weight.bfloat16().float()


def linears(rows: int, depth: int, out: int, *, inductor: bool) -> Variants:
    """As it is called (`torch`), with weights packed by oneDNN, and as a 1x1 convolution.

    torch's float32 linear goes to MKL; a 1x1 convolution goes to oneDNN on more than one thread.
    """
    x, weight = linear_data(rows, depth, out)
    found: Variants = {}
    for precision, dtype in _DTYPES.items():
        a, w = x.to(dtype), weight.to(dtype)
        found[f"torch {precision}"] = (precision, lambda a=a, w=w: functional.linear(a, w))
        packed = torch.ops.mkldnn._reorder_linear_weight(w, rows)
        found[f"oneDNN packed {precision}"] = (
            precision,
            lambda a=a, p=packed: torch.ops.mkldnn._linear_pointwise(a, p, None, "none", [], ""),
        )
        found[f"torch convolution {precision}"] = (precision, _convolution(a, w))
        if inductor:
            found[f"inductor {precision}"] = (precision, _compiled(a, w))
    return found


def integers(rows: int, depth: int, out: int) -> Variants:
    """Dynamic int8 (a scale for each output, one for the input), and int4 beside bfloat16 rows."""
    x, weight = linear_data(rows, depth, out)
    found: Variants = {}
    scale = (weight.abs().amax(1) / 127).double()
    quantized = torch.quantize_per_channel(
        weight, scale, torch.zeros(out, dtype=torch.int64), 0, torch.qint8
    )
    for engine in torch.backends.quantized.supported_engines:
        if engine in ("none", "qnnpack"):
            continue
        torch.backends.quantized.engine = engine
        packed = torch.ops.quantized.linear_prepack(quantized, None)
        found[f"torch dynamic int8 ({engine})"] = (
            "int8",
            lambda p=packed: torch.ops.quantized.linear_dynamic(x, p, reduce_range=False),
        )
    for group in (32, 64, 128):
        if depth % group == 0 and out % 16 == 0:
            name = f"torch int4 beside bfloat16, groups of {group}"
            found[name] = ("int4", _int4(x, weight, group))
    return found


def _int4(x: Tensor, weight: Tensor, group: int) -> Callable[[], Tensor]:
    out, depth = weight.shape
    blocks = weight.reshape(out, depth // group, group)
    scale = blocks.abs().amax(2, keepdim=True) / 7
    codes = (blocks / scale).round().add(8).to(torch.int32).reshape(out, depth)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    # [groups, out, (scale, zero)]: a code c stands for (c - 8) * scale + zero
    scales = torch.stack([scale[:, :, 0].t(), torch.zeros(depth // group, out)], 2)
    a, scales = x.bfloat16(), scales.bfloat16().contiguous()
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(a, packed, group, scales)


def _convolution(a: Tensor, w: Tensor) -> Callable[[], Tensor]:
    """The same product as a 1x1 convolution of one image that is `rows` high and 1 wide."""
    rows, depth = a.shape
    image = a.t().reshape(1, depth, rows, 1).to(memory_format=torch.channels_last)
    kernel = w.reshape(w.shape[0], depth, 1, 1).to(memory_format=torch.channels_last)

    def call() -> Tensor:
        return functional.conv2d(image, kernel)[0, :, :, 0].t()

    return call


def _compiled(a: Tensor, w: Tensor) -> Callable[[], Tensor]:
    """torch.compile, max-autotune, with the weight frozen (and so packed or given a template)."""
    import torch._inductor.config as settings

    settings.freezing = True
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype).eval()
    layer.weight.data.copy_(w)
    run = torch.compile(layer, mode="max-autotune", dynamic=False)
    with torch.no_grad():
        run(a)

    def call() -> Tensor:
        with torch.no_grad():
            return run(a)

    return call


@lru_cache(maxsize=1)
def _attention_data(heads: int, kv_heads: int, lengths: tuple[int, ...]) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(2)
    rows, keys = len(lengths), max(lengths)
    q = torch.randn(1, heads, rows, HEAD_DIM, generator=generator)
    k, v = (torch.randn(1, kv_heads, keys, HEAD_DIM, generator=generator) for _ in range(2))
    # Keys and values are repeated beforehand: the copy is not held against the library.
    k, v = (t.repeat_interleave(heads // kv_heads, dim=1).contiguous() for t in (k, v))
    mask = torch.arange(keys)[None] < torch.tensor(lengths)[:, None]
    return q, k, v, None if bool(mask.all()) else mask


def attention_data(heads: int, kv_heads: int, lengths: list[int]) -> tuple[Any, ...]:
    """q [1, heads, rows, 64], k and v [1, heads, keys, 64], mask [rows, keys] or None."""
    return _attention_data(heads, kv_heads, tuple(lengths))


def attentions(heads: int, kv_heads: int, lengths: list[int]) -> Variants:
    """scaled_dot_product_attention -> [1, heads, rows, 64]."""
    q, k, v, mask = attention_data(heads, kv_heads, lengths)
    found: Variants = {}
    for precision, dtype in _DTYPES.items():
        arrays = [t.to(dtype) for t in (q, k, v)]
        found[f"torch {precision}"] = (
            precision,
            lambda a=arrays: functional.scaled_dot_product_attention(*a, attn_mask=mask),
        )
    return found

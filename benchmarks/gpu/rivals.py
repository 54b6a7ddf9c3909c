"""What torch, bitsandbytes and our Triton kernels do at the same shapes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.contest import Contestant, Prepared, Skip
from benchmarks.shapes import HEAD_DIM, AttentionShape, LinearShape

GROUP = 64  # of 4-bit weights


def linear_bytes(s: LinearShape, weight_bits: float, x_bytes: int, y_bytes: int) -> float:
    """The least that y = x W^T moves; scales of 4-bit groups are counted in weight_bits."""
    return s.out * s.depth * weight_bits / 8 + s.rows * (s.depth * x_bytes + s.out * y_bytes)


def cublas(s: LinearShape, device: str, dtype: torch.dtype = torch.bfloat16) -> Contestant:
    """torch's product of floats, which is cuBLAS."""
    size = dtype.itemsize

    def make() -> Prepared:
        x = torch.randn(s.rows, s.depth, device=device).to(dtype)
        w = (torch.randn(s.out, s.depth, device=device) / s.depth**0.5).to(dtype)
        y = torch.full((s.rows, s.out), float("nan"), device=device, dtype=dtype)
        return Prepared(
            lambda: torch.mm(x, w.t(), out=y), y.float, lambda: x.float() @ w.float().t()
        )

    name = str(dtype).removeprefix("torch.")
    return Contestant(f"cuBLAS {name}", name, linear_bytes(s, 8 * size, size, size), make)


def int_mm(s: LinearShape, device: str) -> Contestant:
    """torch's product of int8, with int32 results and no scales: less than ours computes."""

    def make() -> Prepared:
        if s.rows <= 16 or s.depth % 8 or s.out % 8:
            raise Skip("torch._int_mm wants more than 16 rows, and sizes that 8 divides")
        x, w = (
            torch.randint(-127, 128, (n, s.depth), dtype=torch.int8, device=device)
            for n in (s.rows, s.out)
        )
        y = torch.empty((s.rows, s.out), dtype=torch.int32, device=device)
        return Prepared(
            lambda: torch._int_mm(x, w.t(), out=y), y.float,
            lambda: (x.double() @ w.double().t()).float(),
        )  # fmt: skip

    return Contestant("torch._int_mm", "int8", linear_bytes(s, 8, 1, 4), make)


def nf4(s: LinearShape, device: str) -> Contestant:
    """bitsandbytes' NF4 in blocks of 64, computed in bfloat16."""

    def make() -> Prepared:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise Skip("bitsandbytes is not installed")
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(
            s.depth, s.out, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
        ).to(device)
        x = torch.randn(s.rows, s.depth, device=device).to(torch.bfloat16)
        kept: list[torch.Tensor] = []

        def call() -> None:
            kept[:] = [layer(x)]

        def expected() -> torch.Tensor:
            w = bitsandbytes.functional.dequantize_4bit(layer.weight, layer.weight.quant_state)
            return x.float() @ w.float().t()

        return Prepared(call, lambda: kept[0].float(), expected)

    bits = 4 + 32 / GROUP  # an absmax of float32 a block
    return Contestant("bitsandbytes NF4", "int4", linear_bytes(s, bits, 2, 2), make)


def triton_linear(s: LinearShape, device: str, bits: int) -> Contestant:
    """Our Triton kernel of weights of 8 or 4 bits."""

    def make() -> Prepared:
        if device == "cpu" or importlib.util.find_spec("triton") is None:
            raise Skip("Triton needs a GPU, and to be installed")
        from smolvla_edge.kernels import linear_w4a16, linear_w8a8

        y = torch.full((s.rows, s.out), float("nan"), device=device, dtype=torch.bfloat16)
        if bits == 4:
            x = torch.randn(s.rows, s.depth, device=device).to(torch.bfloat16)
            shape = (s.out, (s.depth + 1) // 2)
            codes = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
            scales = (torch.rand(s.out, -(-s.depth // GROUP), device=device) * 0.1).half()
            launch = linear_w4a16.launch(x, codes, scales, GROUP, None, "none", None, None, y, None)
            return Prepared(launch.run, y.float, lambda: four_bit_product(x, codes, scales))
        x, w = (
            torch.randint(-127, 128, (n, s.depth), dtype=torch.int8, device=device)
            for n in (s.rows, s.out)
        )
        rows, columns = (torch.rand(n, device=device) * 0.01 for n in (s.rows, s.out))
        launch = linear_w8a8.launch(x, rows, w, columns, None, "none", None, y, None)

        def expected() -> torch.Tensor:
            sums = (x.double() @ w.double().t()).float()
            return sums * rows[:, None] * columns[None]

        return Prepared(launch.run, y.float, expected)

    weights = 4 + 16 / GROUP if bits == 4 else 8
    nbytes = linear_bytes(s, weights, 2 if bits == 4 else 1, 2)
    return Contestant("Triton kernel", f"int{bits}", nbytes, make)


def four_bit_product(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The product with the weights that codes (low half first, plus 8) and scales stand for."""
    both = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)[:, : x.shape[1]]
    w = (both.float() - 8) * scales.float().repeat_interleave(GROUP, dim=1)[:, : x.shape[1]]
    return x.float() @ w.t()


# --- attention -----------------------------------------------------------------------------------


def attention_bytes(s: AttentionShape, size: int = 2) -> float:
    """q and the result, keys and values, each once."""
    return HEAD_DIM * size * (2.0 * s.rows * s.heads + 2.0 * s.keys * s.kv_heads)


def attention_operands(
    s: AttentionShape, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [1, heads, rows, 64], k and v [1, kv_heads, keys, 64] of bfloat16."""
    sizes = ((s.heads, s.rows), (s.kv_heads, s.keys), (s.kv_heads, s.keys))
    q, k, v = (torch.randn(1, n, m, HEAD_DIM, device=device).to(torch.bfloat16) for n, m in sizes)
    return q, k, v


def expected_attention(
    s: AttentionShape, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """float32 [1, heads, rows, 64]."""
    group = s.heads // s.kv_heads
    k, v = (t.float().repeat_interleave(group, dim=1) for t in (k, v))
    scores = q.float() @ k.transpose(2, 3) / HEAD_DIM**0.5
    lengths = torch.tensor(s.lengths, device=q.device)
    hidden = torch.arange(s.keys, device=q.device)[None] >= lengths[:, None]
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def _mask(s: AttentionShape, device: str, form: str) -> Any:
    """How torch is told of a causal tail: its own bias (which flash knows), or a mask."""
    if not s.causal:
        return None
    if form == "bias":
        from torch.nn.attention.bias import causal_lower_right

        return causal_lower_right(s.rows, s.keys)
    lengths = torch.tensor(s.lengths, device=device)
    return (torch.arange(s.keys, device=device)[None] < lengths[:, None])[None, None]


def sdpa(s: AttentionShape, device: str) -> list[Contestant]:
    """torch's attention: each of its backends, with each way to say which keys are seen."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    grouped = s.heads != s.kv_heads

    def maker(backend: Any, form: str) -> Callable[[], Prepared]:
        def make() -> Prepared:
            q, k, v = attention_operands(s, device)
            keys, values = k, v
            native = grouped and backend is not SDPBackend.EFFICIENT_ATTENTION
            if grouped and not native:  # it wants as many heads of keys as of queries
                keys, values = (t.repeat_interleave(s.heads // s.kv_heads, 1) for t in (k, v))
            mask = _mask(s, device, form)
            kept: list[torch.Tensor] = []

            def call() -> None:
                with sdpa_kernel([backend]):
                    kept[:] = [
                        F.scaled_dot_product_attention(
                            q, keys, values, attn_mask=mask, enable_gqa=native
                        )
                    ]

            try:
                call()
            except RuntimeError as error:
                first = str(error).strip().splitlines()[0]
                raise Skip(f"torch has no such kernel for this: {first[:160]}") from error
            return Prepared(call, lambda: kept[0].float(), lambda: expected_attention(s, q, k, v))

        return make

    found = []
    for name, backend in backends.items():
        for form in ("bias", "mask") if s.causal else ("",):
            by = f"SDPA {name}" + (f", {form}" if form else "")
            found.append(Contestant(by, "bfloat16", attention_bytes(s), maker(backend, form)))
    return found


def triton_attention(s: AttentionShape, device: str) -> Contestant:
    def make() -> Prepared:
        if device == "cpu" or importlib.util.find_spec("triton") is None:
            raise Skip("Triton needs a GPU, and to be installed")
        from smolvla_edge.kernels import attention_gqa

        q, k, v = attention_operands(s, device)
        lengths = torch.tensor([s.lengths], dtype=torch.int32, device=device)
        rows = [t.transpose(1, 2).contiguous() for t in (q, k, v)]
        out = torch.full_like(rows[0], float("nan"))
        launch = attention_gqa.launch(*rows, lengths, None, out, None)
        return Prepared(
            launch.run, lambda: out.transpose(1, 2).float(),
            lambda: expected_attention(s, q, k, v),
        )  # fmt: skip

    return Contestant("Triton kernel", "bfloat16", attention_bytes(s), make)

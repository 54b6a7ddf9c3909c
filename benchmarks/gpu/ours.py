"""Our CUDA operators (smolvla_edge.ops) at SmolVLA's shapes.

On a GPU their arrays are torch's. On the CPU, for a trial, they are those of tests/gpu under the
CUDA emulator, when the extension in this tree is built for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.contest import Case, Contestant, Prepared, Skip
from benchmarks.gpu.rivals import (
    GROUP,
    attention_bytes,
    expected_attention,
    four_bit_product,
    linear_bytes,
)
from benchmarks.shapes import (
    CHUNK,
    HEAD_DIM,
    NORMS,
    PATCHES,
    PREFIX,
    ROWS,
    STEPS,
    AttentionShape,
    LinearShape,
)

ACTION_DIM = 32


class Memory:
    """Arrays where the operators read them. Raises Skip where this build has no operators."""

    def __init__(self, device: str) -> None:
        try:
            from smolvla_edge import ops
        except ImportError as error:
            raise Skip(f"smolvla_edge.ops cannot be imported: {error}") from error
        if not ops.available():
            raise Skip("the extension is built without CUDA")
        self.ops = ops
        self._arrays: Any = None
        if device == "cpu":
            sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "gpu"))
            import device_arrays

            if not device_arrays.emulated():
                raise Skip("on the CPU the operators run under the emulator alone")
            self._arrays = device_arrays

    def put(self, x: torch.Tensor) -> Any:
        """The same numbers, for operators."""
        if self._arrays is None:
            return x
        dtype = str(x.dtype).removeprefix("torch.")
        values = x.float() if x.dtype == torch.bfloat16 else x
        return self._arrays.to_device(values.numpy(), dtype)

    def empty(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Any:
        """For a result: NaN."""
        if self._arrays is None:
            return torch.full(shape, float("nan"), dtype=dtype, device="cuda")
        return self._arrays.empty(shape, str(dtype).removeprefix("torch."))

    def get(self, array: Any) -> torch.Tensor:
        """float32."""
        if self._arrays is None:
            return array.float()
        return torch.from_numpy(self._arrays.to_host(array)).float()


def _contestant(
    precision: str, nbytes: float, device: str, make: Callable[[Memory], Prepared], what: str = ""
) -> Contestant:
    return Contestant(f"smolvla-edge{what}", precision, nbytes, lambda: make(Memory(device)))


def linear(s: LinearShape, device: str, precision: str) -> Contestant:
    """x and W of one dtype, the result too."""
    dtype = getattr(torch, precision)

    def make(m: Memory) -> Prepared:
        x = torch.randn(s.rows, s.depth, device=device).to(dtype)
        w = (torch.randn(s.out, s.depth, device=device) / s.depth**0.5).to(dtype)
        given, weight = m.put(x), m.put(w)
        y = m.empty(s.rows, s.out, dtype=dtype)
        return Prepared(
            lambda: m.ops.linear(given, weight, out=y), lambda: m.get(y),
            lambda: x.float() @ w.float().t(),
        )  # fmt: skip

    size = dtype.itemsize
    nbytes = linear_bytes(s, 8 * size, size, size)
    return _contestant(precision, nbytes, device, make, f" {precision}")


def linear_w8a8(s: LinearShape, device: str) -> Contestant:
    """Rows that are integers already, as a norm leaves them; the result bfloat16."""

    def make(m: Memory) -> Prepared:
        random = np.random.default_rng(int(torch.randint(1 << 30, ())))
        codes = random.integers(-127, 128, (s.out, s.depth), np.int8)
        scales = random.uniform(0.001, 0.01, s.out).astype(np.float32)
        weight = m.ops.pack_w8(codes, scales)
        x = torch.randn(s.rows, s.depth, device=device)
        rows = m.ops.quantize_rows(m.put(x), out=_integer_rows(m, s.rows, s.depth, device))
        y = m.empty(s.rows, s.out)

        def expected() -> torch.Tensor:
            w = torch.from_numpy(codes.astype(np.float32) * scales[:, None]).to(device)
            most = x.abs().amax(1, keepdim=True) / 127
            return ((x / most).round() * most) @ w.t()

        return Prepared(lambda: m.ops.linear_w8a8(rows, weight, out=y), lambda: m.get(y), expected)

    return _contestant("int8", linear_bytes(s, 8, 1, 2), device, make, " W8A8")


def _integer_rows(m: Memory, rows: int, columns: int, device: str) -> Any:
    """Memory for QuantizedRows: under the emulator nobody else makes it."""
    if device != "cpu":
        return None
    nbytes = m.ops.quantized_row_bytes(columns)
    return m.ops.QuantizedRows(m.put(torch.zeros(rows, nbytes, dtype=torch.int8)), columns)


def linear_w4a16(s: LinearShape, device: str) -> Contestant:
    """4-bit weights in groups of 64, x and the result bfloat16."""

    def make(m: Memory) -> Prepared:
        random = np.random.default_rng(int(torch.randint(1 << 30, ())))
        codes = random.integers(0, 256, (s.out, s.depth // 2), np.uint8)
        scales = random.uniform(0.001, 0.1, (s.out, -(-s.depth // GROUP))).astype(np.float16)
        weight = m.ops.pack_w4(codes, scales, GROUP)
        x = torch.randn(s.rows, s.depth, device=device).to(torch.bfloat16)
        given, y = m.put(x), m.empty(s.rows, s.out)

        def expected() -> torch.Tensor:
            return four_bit_product(
                x, torch.from_numpy(codes).to(device), torch.from_numpy(scales).to(device)
            )

        return Prepared(
            lambda: m.ops.linear_w4a16(given, weight, out=y), lambda: m.get(y), expected
        )

    return _contestant("int4", linear_bytes(s, 4 + 16 / GROUP, 2, 2), device, make, " W4A16")


def attention(s: AttentionShape, device: str) -> Contestant:
    """Lengths of every row in device memory, as in a recorded stage."""

    def make(m: Memory) -> Prepared:
        sizes = ((s.rows, s.heads), (s.kv_heads, s.keys), (s.kv_heads, s.keys))
        q, k, v = (torch.randn(*n, HEAD_DIM, device=device).to(torch.bfloat16) for n in sizes)
        lengths = m.put(torch.tensor(s.lengths, dtype=torch.int32, device=device))
        query, keys, values = m.put(q), m.put(k), m.put(v)
        out = m.empty(s.rows, s.heads, HEAD_DIM)
        return Prepared(
            lambda: m.ops.attention(query, keys, values, lengths, out=out), lambda: m.get(out),
            lambda: expected_attention(s, q.transpose(0, 1)[None], k[None], v[None])[0]
            .transpose(0, 1),
        )  # fmt: skip

    return _contestant("bfloat16", attention_bytes(s), device, make, " bfloat16")


# --- operations on rows: no rival, a share of the copy -------------------------------------------


def _norm(op: str, rows: int, columns: int, device: str) -> Case:
    """float32 to bfloat16."""

    def make(m: Memory) -> Prepared:
        x = torch.randn(rows, columns, device=device)
        weight, bias = (torch.rand(columns, device=device) for _ in range(2))
        given, w, b, y = m.put(x), m.put(weight), m.put(bias), m.empty(rows, columns)
        if op == "layer_norm":
            return Prepared(
                lambda: m.ops.layer_norm(given, w, b, 1e-6, out=y), lambda: m.get(y),
                lambda: torch.nn.functional.layer_norm(x, (columns,), weight, bias, 1e-6),
            )  # fmt: skip
        return Prepared(
            lambda: m.ops.rms_norm(given, w, 1e-6, out=y), lambda: m.get(y),
            lambda: x * (x.pow(2).mean(1, keepdim=True) + 1e-6).rsqrt() * weight,
        )  # fmt: skip

    nbytes = rows * columns * 6.0 + columns * 8.0
    return Case(f"{op} {rows}", "rows", f"{rows} x {columns}", 0.0, 0,
                [_contestant("", nbytes, device, make)])  # fmt: skip


def _quantize(rows: int, columns: int, device: str) -> Case:
    """bfloat16 to int8."""

    def make(m: Memory) -> Prepared:
        given = m.put(torch.randn(rows, columns, device=device).to(torch.bfloat16))
        made = m.ops.quantize_rows(given, out=_integer_rows(m, rows, columns, device))
        return Prepared(lambda: m.ops.quantize_rows(given, out=made))

    return Case(f"quantize_rows {rows}", "rows", f"{rows} x {columns}", 0.0, 0,
                [_contestant("", rows * (3.0 * columns + 4), device, make)])  # fmt: skip


def _flow_step(rows: int, columns: int, device: str) -> Case:
    def make(m: Memory) -> Prepared:
        x, v = (m.put(torch.randn(rows, columns, device=device)) for _ in range(2))
        # A step of nothing: x stays finite however often it is taken.
        schedule = m.put(torch.tensor([[0.0, 0.5, 0.0]], device=device))
        step = m.put(torch.zeros(1, dtype=torch.int32, device=device))
        return Prepared(lambda: m.ops.flow_step(x, v, schedule, step))

    return Case("flow_step", "rows", f"{rows} x {columns}", 0.0, STEPS,
                [_contestant("", rows * columns * 12.0, device, make)])  # fmt: skip


def row_cases(device: str, small: bool = False) -> list[Case]:
    """What is bound by bytes, or by being launched; `small`: to try the program."""
    if small:
        norms: tuple[tuple[str, int, int], ...] = (("layer_norm", 5, 64), ("rms_norm", 5, 64))
        return [*(_norm(*n, device) for n in norms), _quantize(5, 64, device),
                _flow_step(5, 8, device)]  # fmt: skip
    shapes = [(rows, columns) for rows, columns in ROWS if rows in (PATCHES, PREFIX)]
    return [
        *(_norm(*n, device) for n in NORMS),
        *(_quantize(rows, columns, device) for rows, columns in shapes),
        _flow_step(CHUNK, ACTION_DIM, device),
    ]

"""Microbenchmarks of the CPU operations at SmolVLA's shapes.

    pytest benchmarks/micro --benchmark-json=micro.json        (compare: --benchmark-compare)

Each row carries GFLOP/s and its share of a register-only fma loop of the same ISA, measured in the
same run. These files assert nothing about time.
"""

from __future__ import annotations

import numpy as np
import pytest

from smolvla_edge import _core

THREADS = 1
ISAS = list(
    dict.fromkeys(
        row["isa"] for row in _core.kernel_table() if row["op"] == "gemm_f32" and row["supported"]
    )
)
# (rows, in, out): vision qkv, up, down; prefix qkv, gate and up, down; expert the same
LINEAR = [
    (1024, 768, 2304),
    (1024, 768, 3072),
    (1024, 3072, 768),
    (113, 960, 1600),
    (113, 960, 5120),
    (113, 2560, 960),
    (50, 720, 1600),
    (50, 720, 4096),
    (50, 2048, 720),
]
# (rows, keys, heads, kv heads): vision, prefix, expert
ATTENTION = [(1024, 1024, 12, 12), (113, 113, 15, 5), (50, 163, 15, 5)]


@pytest.fixture(scope="session")
def ceiling() -> dict[str, float]:
    return {isa: _core.peak(THREADS, isa, 500.0) for isa in ISAS}


def measure(benchmark, call, flops: float, peak: float) -> None:
    benchmark.pedantic(call, rounds=7, iterations=1, warmup_rounds=2)
    if benchmark.stats is None:  # --benchmark-disable
        return
    rate = flops / benchmark.stats.stats.median * 1e-9
    benchmark.extra_info.update(
        gflops=round(rate, 1), share_of_fma_loop=round(rate / peak, 3), fma_loop=round(peak, 1)
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("rows, depth, out", LINEAR)
def test_linear(benchmark, ceiling, tmp_path, isa, dtype, rows, depth, out):
    ops = _core.CpuOps(THREADS, isa)
    path = tmp_path / "w.bin"
    bits = np.random.default_rng(0).integers(0, 0x3F80, depth * out).astype(np.uint16)
    path.write_bytes(bits.tobytes() if dtype == "BF16" else np.ones(depth * out, "f4").tobytes())
    handle = ops.load_linear(str(path), dtype, out, depth)
    x = np.random.default_rng(1).standard_normal((rows, depth), np.float32)
    y = np.empty((rows, out), np.float32)
    flops = 2.0 * rows * depth * out
    measure(benchmark, lambda: ops.linear(handle, x, y), flops, ceiling[isa])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows, keys, heads, kv_heads", ATTENTION)
def test_attention(benchmark, ceiling, isa, rows, keys, heads, kv_heads):
    ops = _core.CpuOps(THREADS, isa)
    rng = np.random.default_rng(2)
    kv = ops.make_kv(kv_heads, 64, keys)
    k, v = (rng.standard_normal((keys, kv_heads * 64), np.float32) for _ in range(2))
    ops.store_kv(kv, k, v, 0)
    q = rng.standard_normal((rows, heads * 64), np.float32)
    lengths = np.full(rows, keys, np.int32)
    out = np.empty_like(q)
    flops = 4.0 * rows * keys * heads * 64
    measure(
        benchmark, lambda: ops.attention(kv, q, lengths, out, heads, kv_heads), flops, ceiling[isa]
    )

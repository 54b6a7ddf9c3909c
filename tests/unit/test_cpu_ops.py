"""Operations of the CPU backend against numpy in double, over shapes that divide by nothing.

Bounds are counted, not tuned: a dot product of depth K in chains of 256 is at most
min(K, 256) + K / 256 roundings away, each of half an ulp of the sum of magnitudes. That error
passes through silu (slope at most 1.1), a product or a softmax; `exp` and the division add at most
16 roundings of their own.
"""

from __future__ import annotations

import numpy as np
import pytest

from smolvla_edge import _core

EPS = 2.0**-24
ISAS = [row["isa"] for row in _core.kernel_table() if row["op"] == "gemm_f32" and row["supported"]]
ISAS = list(dict.fromkeys(ISAS))
ROWS = [1, 2, 7, 13, 14, 15, 49, 50, 51, 64, 75, 113, 241]
SHAPES = [(960, 320), (720, 72), (31, 33), (513, 1), (64, 100)]  # (in, out)


@pytest.fixture(params=ISAS)
def isa(request):
    return request.param


def bf16(x: np.ndarray) -> np.ndarray:
    """float32 rounded towards zero to bfloat16 values."""
    return (x.view(np.uint32) & 0xFFFF0000).view(np.float32)


def load(ops, tmp_path, weight: np.ndarray, dtype: str, gated: bool = False) -> int:
    path = tmp_path / "w.bin"
    bits = weight if dtype == "F32" else (weight.view(np.uint32) >> 16).astype(np.uint16)
    path.write_bytes(np.ascontiguousarray(bits).tobytes())
    return ops.load_linear(str(path), dtype, weight.shape[0], weight.shape[1], gated)


def bound(depth: int) -> float:
    return (min(depth, 256) + depth // 256 + 4) * EPS * 1.01


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("depth, out", SHAPES)
def test_linear_equals_numpy(isa, dtype, depth, out, tmp_path):
    rng = np.random.default_rng(depth + out)
    weight = rng.standard_normal((out, depth), np.float32)
    weight = bf16(weight) if dtype == "BF16" else weight
    results = {}
    for threads in (1, 2):
        ops = _core.CpuOps(threads, isa)
        handle = load(ops, tmp_path, weight, dtype)
        for rows in ROWS:
            x = np.random.default_rng(rows).standard_normal((rows, depth), np.float32)
            y = np.full((rows, out), np.nan, np.float32)
            ops.linear(handle, x, y)
            size = np.abs(x).astype(np.float64) @ np.abs(weight).T.astype(np.float64)
            error = np.abs(y - x.astype(np.float64) @ weight.T.astype(np.float64))
            assert (error <= bound(depth) * size).all()
            assert np.array_equal(y, results.setdefault(rows, y)), "threads change a result"
            if rows > 1:  # a row alone gives the bits it gives among others
                alone = np.empty((1, out), np.float32)
                ops.linear(handle, x[-1:].copy(), alone)
                assert np.array_equal(alone[0], y[-1])


def test_every_isa_gives_the_same_bits(tmp_path):
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((200, 700), np.float32)
    x = rng.standard_normal((51, 700), np.float32)
    results = []
    for name in ISAS:
        ops = _core.CpuOps(1, name)
        y = np.empty((51, 200), np.float32)
        ops.linear(load(ops, tmp_path, weight, "F32"), x, y, activation="gelu_tanh")
        results.append(y)
    assert all(np.array_equal(y, results[0]) for y in results)


def test_bias_activation_scale_and_residual_in_place(isa, tmp_path):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((45, 96), np.float32) / 10
    x = rng.standard_normal((50, 96), np.float32)
    bias = np.zeros(64, np.float32)
    bias[:45] = rng.standard_normal(45)
    y = rng.standard_normal((50, 45)).astype(np.float32)
    before = y.astype(np.float64)
    ops = _core.CpuOps(2, isa)
    ops.linear(
        load(ops, tmp_path, weight, "F32"),
        x,
        y,
        bias=bias,
        activation="silu",
        residual=y,
        scale=0.5,
    )
    z = x.astype(np.float64) @ weight.T.astype(np.float64) + bias[:45]
    silu = z / (1 + np.exp(-z))
    want = silu * 0.5 + before
    size = np.abs(x).astype(np.float64) @ np.abs(weight).T + np.abs(bias[:45])
    allowed = 0.5 * (1.1 * bound(96) * size + 16 * EPS * (1 + np.abs(silu))) + EPS * np.abs(want)
    assert (np.abs(y - want) <= allowed).all()


@pytest.mark.parametrize("half", [16, 40, 88])
def test_gated_linear(isa, half, tmp_path):
    rng = np.random.default_rng(half)
    weight = rng.standard_normal((2 * half, 72), np.float32) / 8
    x = rng.standard_normal((50, 72), np.float32)
    ops = _core.CpuOps(2, isa)
    y = np.empty((50, half), np.float32)
    ops.linear(load(ops, tmp_path, weight, "BF16", gated=True), x, y)
    z = x.astype(np.float64) @ bf16(weight).T.astype(np.float64)
    gate, up = z[:, :half], z[:, half:]
    silu = gate / (1 + np.exp(-gate))
    size = bound(72) * (np.abs(x).astype(np.float64) @ np.abs(bf16(weight)).T)
    allowed = (1.1 * size[:, :half] + 16 * EPS * (1 + np.abs(silu))) * (np.abs(up) + size[:, half:])
    assert (np.abs(y - silu * up) <= allowed + np.abs(silu) * size[:, half:]).all()


@pytest.mark.parametrize("heads, kv_heads, dim", [(12, 12, 64), (15, 5, 64), (6, 2, 8), (4, 4, 40)])
@pytest.mark.parametrize("rows, keys", [(1, 1), (50, 163), (57, 300), (113, 113)])
def test_attention_equals_numpy(isa, heads, kv_heads, dim, rows, keys):
    rng = np.random.default_rng(rows * keys)
    q = rng.standard_normal((rows, heads * dim), np.float32)
    k = rng.standard_normal((keys, kv_heads * dim), np.float32)
    v = rng.standard_normal((keys, kv_heads * dim), np.float32)
    lengths = np.clip(keys - rows + np.arange(rows) + 1, 1, keys).astype(np.int32)  # causal
    results = []
    for threads in (1, 2):
        ops = _core.CpuOps(threads, isa)
        kv = ops.make_kv(kv_heads, dim, keys + 5)
        split = keys // 3  # stored in two goes, as the expert does
        ops.store_kv(kv, k[split:], v[split:], split)
        ops.store_kv(kv, k[:split], v[:split], 0)
        out = np.full_like(q, np.nan)
        ops.attention(kv, q, lengths, out, heads, kv_heads)
        results.append(out)
    assert np.array_equal(*results)
    group = heads // kv_heads
    for h in range(heads):
        at = slice(h * dim, (h + 1) * dim)
        kv_at = slice(h // group * dim, (h // group + 1) * dim)
        scores = q[:, at].astype(np.float64) @ k[:, kv_at].T / np.sqrt(dim)
        scores[np.arange(keys)[None] >= lengths[:, None]] = -np.inf
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        # A score is off by `moved`, a probability by twice that, relatively; then sums over keys.
        moved = bound(dim) * (np.abs(q[:, at]) @ np.abs(k[:, kv_at]).T).max(1) / np.sqrt(dim)
        roundings = (2 * keys / 16 + min(keys, 256) + 32) * EPS
        allowed = (2 * moved + roundings)[:, None] * (p @ np.abs(v[:, kv_at]))
        assert (np.abs(results[0][:, at] - p @ v[:, kv_at]) <= allowed * 1.01).all()


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_attention_reads_and_writes_activations_as_arrays(isa, compute):
    rng = np.random.default_rng(3)
    q, k, v = (bf16(rng.standard_normal((rows, 64), np.float32)) for rows in (15, 40, 40))
    lengths = np.full(15, 40, np.int32)
    ops = _core.CpuOps(2, isa, compute)
    kv = ops.make_kv(4, 16, 40)
    ops.store_kv(kv, k, v, 0)
    want = np.empty_like(q)
    ops.attention(kv, q, lengths, want, 4, 4)
    out = ops.make_activation(np.zeros_like(q))
    ops.attention(kv, ops.make_activation(q), lengths, out, 4, 4)
    got = ops.read_activation(out)
    one_rounding = 0 if compute == "float32" else 2.0**-8 * np.abs(want)
    assert (np.abs(got - want) <= one_rounding).all()


def test_wrong_arrays_are_refused_by_name(tmp_path):
    from smolvla_edge.errors import CheckpointError, InputError

    ops = _core.CpuOps(1, "scalar")
    handle = load(ops, tmp_path, np.ones((4, 8), np.float32), "F32")
    y = np.empty((2, 4), np.float32)
    for x in (np.ones((2, 7), np.float32), np.ones((2, 8)), np.ones((8, 2), np.float32).T, [[1.0]]):
        with pytest.raises(InputError, match="x"):
            ops.linear(handle, x, y)
    with pytest.raises(CheckpointError, match="outside"):
        ops.load_linear(str(tmp_path / "w.bin"), "F32", 400, 8)

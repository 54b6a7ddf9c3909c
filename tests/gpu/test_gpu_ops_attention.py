"""Attention and the cache that it reads, as Python calls them, against float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from bounds import BF16, CUT, F32, Bound
from device_arrays import Guarded
from ops_cases import full, given, nothing_else

from smolvla_edge import ops

pytestmark = pytest.mark.gpu


@dataclass(frozen=True)
class Case:
    rows: int
    heads: int
    kv_heads: int
    width: int
    capacity: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.heads}x{self.width} on {self.capacity}x{self.kv_heads}"


CASES = [
    Case(1, 1, 1, 64, 1), Case(7, 6, 2, 64, 70), Case(50, 3, 1, 64, 129), Case(5, 4, 4, 8, 33),
    Case(3, 2, 1, 10, 40), Case(2, 2, 1, 256, 9),
    *(
        full(c)
        for c in [  # vision; the prefix; the expert with one camera and with three; many keys
            Case(1024, 12, 12, 64, 1024), Case(241, 15, 5, 64, 241), Case(50, 15, 5, 64, 163),
            Case(50, 15, 5, 64, 291), Case(17, 8, 2, 64, 5000), Case(9, 2, 2, 128, 3500),
        ]
    ),
]  # fmt: skip


def wanted(q, keys, values, lengths, tensor: bool) -> Bound:
    """tensor: products of bfloat16, weights of the softmax rounded to it. Else float32 throughout.

    A score is off by `score`, so a weight by as much of itself, in numerator and sum alike.
    """
    q, keys, values = (np.asarray(x, np.float64) for x in (q, keys, values))
    rows, heads, width = q.shape
    group = heads // len(keys)
    value, error = np.zeros(q.shape), np.zeros(q.shape)
    for head in range(heads):
        k, v = keys[head // group], values[head // group]
        scores = q[:, head] @ k.T / np.sqrt(width)
        magnitude = np.abs(q[:, head]) @ np.abs(k).T / np.sqrt(width)
        for row in range(rows):
            n = min(int(lengths[row]), len(k))
            if n <= 0:
                continue
            s = scores[row, :n]
            p = np.exp(s - s.max())
            total = p.sum()
            # The product; scaling by 1/sqrt(width) (of q, or twice with log2 e); subtracting.
            dot = 1.25 * width * CUT if tensor else width * F32
            score = (dot * magnitude[row, :n]).max() + 4 * F32 * (np.abs(s).max() + np.ptp(s))
            weight = score + 4 * CUT  # exp itself
            summing = (n + 8) * (F32 if not tensor else CUT) + n * 1.25 * CUT * tensor
            one = 2 * weight + summing + 4 * F32 + (BF16 if tensor else 0)
            spread = p @ np.abs(v[:n]) / total
            value[row, head] = p @ v[:n] / total
            error[row, head] = one * spread * 1.01
    return Bound(value, error)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "dtypes",  # of q, the cache and the result
    [
        "float32 float32 float32",
        "float32 bfloat16 float32",
        "bfloat16 bfloat16 bfloat16",
        "float32 bfloat16 bfloat16",
    ],
)
def test_attention(random, case, dtypes):
    q_dtype, kv_dtype, out_dtype = dtypes.split()
    tensor = kv_dtype == out_dtype == "bfloat16" and case.width == 64
    shape = (case.rows, case.heads, case.width)
    q = given(random.floats(*shape), q_dtype, pitch=case.heads * case.width + 8)
    cache = (case.kv_heads, case.capacity, case.width)
    keys, values = (given(random.floats(*cache), kv_dtype) for _ in range(2))
    # None, all, and what prefix and causal rows have; one beyond the capacity counts as it.
    counts = random.generator.integers(0, case.capacity, case.rows, np.int32, endpoint=True)
    counts[-1] = case.capacity
    if case.rows > 3:
        counts[:3] = 0, 1, case.capacity + 1000
    lengths = given(counts)
    out = Guarded(shape, out_dtype, pitch=case.heads * case.width + 2)
    with nothing_else(q, keys, values, lengths, out=out):
        ops.attention(q.array, keys.array, values.array, lengths.array, out.array)
    held = q.values
    if tensor and q_dtype == "float32":
        held = given(q.values, "bfloat16").values
    got = out.read()
    wanted(held, keys.values, values.values, counts, tensor).stored(out_dtype).check(got)
    assert not got[counts == 0].any()


def test_what_lies_beyond_a_length_is_not_read(random):
    """Poison in the cache: a NaN that is multiplied by zero would show."""
    q = given(random.floats(20, 2, 64), "bfloat16")
    keys, values = random.floats(1, 200, 64), random.floats(1, 200, 64)
    counts = np.full(20, 70, np.int32)
    lengths = given(counts)
    want = wanted(
        q.values, given(keys, "bfloat16").values, given(values, "bfloat16").values, counts, True
    )
    keys[:, 70:], values[:, 70:] = np.nan, np.nan
    cache = [given(x, "bfloat16") for x in (keys, values)]
    out = Guarded((20, 2, 64), "bfloat16")
    ops.attention(q.array, cache[0].array, cache[1].array, lengths.array, out.array)
    want.stored("bfloat16").check(out.read())


@pytest.mark.parametrize("dtypes", ["float32 bfloat16", "bfloat16 bfloat16", "float32 float32"])
@pytest.mark.parametrize("first", [None, 0, 5])
def test_store_kv(random, dtypes, first):
    rows_dtype, cache_dtype = dtypes.split()
    heads, capacity, width = 5, 12, 64
    rows = [
        given(random.floats(9, heads, width), rows_dtype, pitch=heads * width + 2) for _ in range(2)
    ]
    caches = [Guarded((heads, capacity, width), cache_dtype) for _ in range(2)]
    position = None if first is None else given(np.array([first], np.int32))
    ops.store_kv(
        rows[0].array, rows[1].array, caches[0].array, caches[1].array, position and position.array
    )
    for source, cache in zip(rows, caches, strict=True):
        cache.check()
        source.guarded.check(written=False)
        got = cache.read()
        want = given(source.values.transpose(1, 0, 2), cache_dtype).values
        begin = first or 0
        stored = min(9, capacity - begin)  # rows beyond the capacity are dropped
        assert np.array_equal(got[:, begin : begin + stored], want[:, :stored])
        assert np.isnan(got[:, :begin]).all() and np.isnan(got[:, begin + stored :]).all()


@pytest.mark.parametrize("dtypes", ["float32 bfloat16", "bfloat16 bfloat16", "float32 float32"])
@pytest.mark.parametrize("first", [None, 5])
def test_rope_store_is_rope_and_then_store_kv(random, dtypes, first):
    """The same bytes, in one launch; of rows in bfloat16 too, which are rounded once in both."""
    dtype, cache_dtype = dtypes.split()
    rows, heads, kv_heads, width, capacity = 9, 6, 2, 64, 12
    values = random.floats(rows, heads + 2 * kv_heads, width)
    parts = np.split(values, [heads, heads + kv_heads], axis=1)
    angles = random.floats(20, width // 2, most=3)
    tables = [given(f(angles)) for f in (np.cos, np.sin)]
    position = None if first is None else given(np.array([first], np.int32))
    number = position and position.array
    written = []
    for fused in (True, False):
        q, keys, kept = (given(x, dtype, pitch=x[0].size + 2) for x in parts)
        caches = [Guarded((kv_heads, capacity, width), cache_dtype) for _ in range(2)]
        into = [cache.array for cache in caches]
        angle = [table.array for table in tables]
        if fused:
            ops.rope_store(q.array, keys.array, kept.array, *angle, *into, number)
        else:
            ops.rope(q.array, *angle, number)
            ops.rope(keys.array, *angle, number)
            ops.store_kv(keys.array, kept.array, *into, number)
        for x in (q.guarded, keys.guarded, *caches):
            x.check()
        kept.guarded.check(written=False)
        written.append([x.read() for x in (q.guarded, keys.guarded, *caches)])
    for one, other in zip(*written, strict=True):
        assert np.array_equal(one, other, equal_nan=True)
    assert not np.array_equal(written[0][0], given(parts[0], dtype).values)


def test_a_stored_cache_is_what_attention_reads(random):
    heads, rows, width = 2, 33, 64
    keys, values = (given(random.floats(rows, heads, width), "bfloat16") for _ in range(2))
    caches = [Guarded((heads, 40, width), "bfloat16") for _ in range(2)]
    ops.store_kv(keys.array, values.array, caches[0].array, caches[1].array)
    q = given(random.floats(11, 6, width), "bfloat16")
    counts = np.full(11, rows, np.int32)
    lengths = given(counts)
    out = Guarded((11, 6, width), "bfloat16")
    ops.attention(q.array, caches[0].array, caches[1].array, lengths.array, out.array)
    whole = [x.values.transpose(1, 0, 2) for x in (keys, values)]
    wanted(q.values, *whole, counts, True).stored("bfloat16").check(out.read())

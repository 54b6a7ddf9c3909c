"""Attention and the flow step in Triton's interpreter, against float64 and torch's own bits."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import GENERATOR, HALF_AND_FULL, assert_near, poisoned, random

from smolvla_edge.kernels.attention_gqa import attention_gqa
from smolvla_edge.kernels.flow_step import flow_step


def exact(q, k, v, seen):
    """In float64; seen [batch, rows, keys] bool -> (result, sum of the absolute values)."""
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen[:, None], -1e300).softmax(-1)
    return (weights @ v).transpose(1, 2), (weights @ v.abs()).transpose(1, 2)


def operands(batch, rows, keys, heads, kv_heads, dim, dtype):
    q = random(batch, rows, heads, dim, dtype=dtype)
    return q, *(random(batch, keys, kv_heads, dim, dtype=dtype) for _ in range(2))


def terms(dtype: torch.dtype, keys: int) -> int:
    """float32 additions, and in float16 the rounding of the weights: half a unit of each."""
    # Scores err by some ulps of themselves; an exponential turns that into a relative error.
    scores = 256
    return keys + scores + (int(torch.finfo(dtype).eps / 2.0**-24) if dtype != torch.float32 else 0)


@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=str)
@pytest.mark.parametrize(
    "batch, rows, keys, heads, kv_heads, dim",
    [(1, 50, 163, 15, 5, 64), (2, 1, 77, 6, 2, 64), (1, 130, 130, 2, 2, 64), (1, 7, 20, 4, 2, 24)],
)
def test_lengths_of_every_row(batch, rows, keys, heads, kv_heads, dim, dtype):
    q, k, v = operands(batch, rows, keys, heads, kv_heads, dim, dtype)
    lengths = torch.randint(1, keys + 1, (batch, rows), generator=GENERATOR, dtype=torch.int32)
    seen = torch.arange(keys) < lengths[..., None]
    # What no row reads must not matter, not even as NaN in another row's tile.
    got = attention_gqa(q, k, v, lengths=lengths, out=poisoned(*q.shape, dtype=dtype), use="triton")
    want, size = exact(q, k, v, seen)
    assert_near(got, want, size, terms(dtype, keys))


@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=str)
def test_a_mask_with_holes_and_an_empty_row(dtype):
    q, k, v = operands(2, 33, 90, 6, 2, 64, dtype)
    mask = torch.rand((2, 33, 90), generator=GENERATOR) < 0.4
    mask[1, 4] = False  # the average over all keys, as in LeRobot
    mask[0, 5] = False
    mask[0, 5, 80:] = True  # nothing in the first tile of keys
    got = attention_gqa(q, k, v, mask=mask, out=poisoned(*q.shape, dtype=dtype), use="triton")
    want, size = exact(q, k, v, mask)
    assert_near(got, want, size, terms(dtype, 90))


def test_every_key_and_large_scores():
    q, k, v = operands(1, 40, 100, 3, 3, 64, torch.float32)
    q *= 30  # scores in the hundreds: softmax must subtract the largest
    got = attention_gqa(q, k, v, use="triton")
    want, size = exact(q, k, v, torch.ones(1, 40, 100, dtype=torch.bool))
    # An error of 2^-24 of a score of 300 is 300 units of its exponential.
    assert_near(got, want, size + 1, 64 * 300)


def test_a_row_without_keys_is_zero():
    q, k, v = operands(1, 20, 30, 3, 1, 64, torch.float32)
    lengths = torch.full((1, 20), 30, dtype=torch.int32)
    lengths[0, 7] = 0
    got = attention_gqa(q, k, v, lengths=lengths, use="triton")
    assert (got[0, 7] == 0).all() and (got[0, 8] != 0).all()
    assert torch.equal(attention_gqa(q, k, v, lengths=lengths, use="torch")[0, 7], got[0, 7])


def test_lengths_past_the_keys_read_all_of_them():
    q, k, v = operands(1, 20, 30, 3, 1, 64, torch.float32)
    past, whole = (torch.full((1, 20), n, dtype=torch.int32) for n in (1000, 30))
    results = [attention_gqa(q, k, v, lengths=n, use="triton") for n in (past, whole)]
    assert torch.equal(*results)


@pytest.mark.parametrize("shape", [(50, 32), (1, 32), (3, 7, 6)], ids=str)
def test_flow_step_has_the_bits_of_torch(shape):
    x, v = random(*shape), random(*shape)
    previous, weights = random(*shape[-2:]), torch.rand(shape[-2], generator=GENERATOR)
    guided = {"previous": previous, "weights": weights, "t": 0.7, "gain": 3.7}
    for more in ({}, guided):
        out = poisoned(*shape, dtype=torch.float32)
        got = flow_step(x, v, dt=-0.1, out=out, use="triton", **more)
        assert torch.equal(got, flow_step(x, v, dt=-0.1, use="torch", **more))
    wide = x.double() - 0.1 * (
        v.double() - 3.7 * (previous - (x.double() - 0.7 * v.double())) * weights[:, None]
    )
    torch.testing.assert_close(got.double(), wide, rtol=1e-5, atol=1e-5)
    in_place = flow_step(x, v, dt=-0.1, out=x, use="triton", **guided)
    assert in_place is x and torch.equal(x, got)

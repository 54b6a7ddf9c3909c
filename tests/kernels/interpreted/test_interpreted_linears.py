"""The linear kernels in Triton's interpreter, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kernel_checks import HALF_AND_FULL, assert_near, int8, poisoned, random

from smolvla_edge import codes
from smolvla_edge.kernels.linear_w4a16 import decode, linear_w4a16
from smolvla_edge.kernels.linear_w8a8 import linear_w8a8, round_rows
from smolvla_edge.kernels.rmsnorm_linear import rmsnorm_linear
from smolvla_edge.kernels.swiglu import swiglu


def stored(columns: int, depth: int, form: codes.CodeFormat) -> tuple[torch.Tensor, torch.Tensor]:
    weight = random(columns, depth).numpy()
    return tuple(torch.from_numpy(x) for x in codes.round_to_nearest(weight, form).stored())


@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=str)
@pytest.mark.parametrize(
    "rows, depth, columns, group",
    [(1, 720, 33, 64), (50, 960, 72, 32), (77, 721, 40, 128), (50, 720, 100, 128), (3, 15, 5, 32)],
)
def test_w4a16(rows, depth, columns, group, dtype):
    x = random(rows, depth, dtype=dtype)
    packed, scales = stored(columns, depth, codes.CodeFormat(4, group))
    out = poisoned(rows, columns, dtype=dtype)
    got = linear_w4a16(x, packed, scales, group_size=group, out=out, use="triton")
    assert got is out
    of_inputs = np.repeat(scales.double().numpy(), group, 1)[:, :depth]
    weight = torch.from_numpy(codes.unpack4(packed.numpy(), depth) * of_inputs)
    wide = x.double()
    assert_near(got, wide @ weight.T, wide.abs() @ weight.abs().T, depth)


@pytest.mark.parametrize("activation", ["none", "gelu_tanh", "silu"])
def test_the_w4a16_epilogue(activation):
    x, row_scale, bias, residual = random(50, 64), random(50), random(24), random(50, 24)
    packed, scales = stored(24, 64, codes.CodeFormat(4, 32))
    got = linear_w4a16(
        x, packed, scales, group_size=32, bias=bias, activation=activation, residual=residual,
        row_scale=row_scale, out=poisoned(50, 24, dtype=torch.float32), use="triton",
    )  # fmt: skip
    weight = decode(packed, scales, 64, 32).double()
    y = (x.double() @ weight.T) * row_scale.double()[:, None] + bias.double()
    kinds = {
        "none": lambda v: v,
        "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
        "silu": F.silu,
    }
    size = (x.double().abs() @ weight.abs().T) * row_scale.double().abs()[:, None] + bias.abs() + 1
    assert_near(got, kinds[activation](y) + residual.double(), size + residual.abs(), 64 + 32)


def test_w4a16_on_rounded_rows_is_w4a8():
    """Integers in float16: the sums of a group are exact, so only the groups' own sums round."""
    rows, scales_of_rows = codes.round_rows(random(50, 720).numpy())
    packed, scales = stored(48, 720, codes.CodeFormat(4, 64))
    x = torch.from_numpy(rows)
    got = linear_w4a16(
        x.half(), packed, scales, group_size=64, row_scale=torch.from_numpy(scales_of_rows),
        dtype=torch.float32, use="triton",
    )  # fmt: skip
    factor = torch.from_numpy(scales_of_rows).double()[:, None]
    weight = decode(packed, scales, 720, 64).double()
    size = (x.double().abs() @ weight.abs().T) * factor
    assert_near(got, (x.double() @ weight.T) * factor, size, 12)


@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=str)
@pytest.mark.parametrize(
    "rows, depth, columns", [(1, 720, 33), (50, 960, 72), (77, 100, 40), (1, 3072, 16)]
)
def test_w8a8(rows, depth, columns, dtype):
    x, weight = int8(rows, depth), int8(columns, depth)
    x[0], weight[0] = 127, -127  # the largest sums
    x_scales, scales = random(rows).abs() / 127, random(columns).abs() / 127
    out = poisoned(rows, columns, dtype=dtype)
    got = linear_w8a8(x, x_scales, weight, scales, dtype=dtype, out=out, use="triton")
    sums = x.double() @ weight.double().T
    want = sums * x_scales.double()[:, None] * scales.double()
    # The integers are exact: what is left is their conversion and two products.
    assert_near(got, want, want.abs(), 0)


def test_the_w8a8_epilogue():
    x, weight, x_scales, scales = int8(50, 96), int8(24, 96), random(50).abs(), random(24).abs()
    bias, residual = random(24), random(50, 24)
    got = linear_w8a8(
        x, x_scales, weight, scales / 1e3, bias=bias, activation="gelu_tanh", residual=residual,
        dtype=torch.float32, use="triton",
    )  # fmt: skip
    sums = (x.double() @ weight.double().T) * x_scales.double()[:, None] * (scales / 1e3).double()
    want = F.gelu(sums + bias.double(), approximate="tanh") + residual.double()
    assert_near(got, want, sums.abs() + bias.abs() + residual.abs() + 1, 32)


@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=str)
@pytest.mark.parametrize("rows, depth", [(1, 720), (50, 960), (77, 33)])
def test_round_rows_gives_the_bits_of_codes(rows, depth, dtype):
    x = random(rows, depth, dtype=dtype)
    x[0, : depth // 2] = x[0, 0].abs() * torch.arange(depth // 2) % 2.5  # ties among them
    if rows > 2:
        x[1], x[2] = 0, 1e-38 if dtype == torch.float32 else 0
        x[3, 5], x[4, 6] = torch.nan, -torch.inf
    factors = random(depth).abs()
    for given in (None, factors):
        got, scales = round_rows(x, factors=given, use="triton")
        wide = x.float() if given is None else x.float() * given
        want, want_scales = codes.round_rows(wide.numpy())
        assert np.array_equal(got.numpy(), want)
        assert np.array_equal(scales.numpy(), want_scales, equal_nan=True)
        plain, plain_scales = round_rows(x, factors=given, use="torch")
        assert torch.equal(plain, got)
        assert np.array_equal(plain_scales.numpy(), want_scales, equal_nan=True)


@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=str)
@pytest.mark.parametrize("rows, depth, columns", [(1, 720, 33), (50, 960, 72), (77, 100, 40)])
def test_rmsnorm_linear(rows, depth, columns, dtype):
    x, weight = random(rows, depth, dtype=dtype), random(columns, depth, dtype=dtype)
    x[0] *= 1e-3  # eps matters
    gamma, bias = 1 + random(depth) / 8, random(columns)
    out = poisoned(rows, columns, dtype=dtype)
    for of_x, of_y in ((None, None), (gamma, bias)):
        got = rmsnorm_linear(x, of_x, weight, eps=1e-5, bias=of_y, out=out, use="triton")
        wide = x.double()
        factor = 1 / torch.sqrt(wide.pow(2).mean(1, keepdim=True) + 1e-5)
        scaled = wide if of_x is None else wide * of_x.double()
        want = (scaled @ weight.double().T) * factor
        size = (scaled.abs() @ weight.double().abs().T) * factor
        want = want if of_y is None else want + of_y.double()
        # x * gamma is rounded to the dtype of x, half a unit of each term.
        rounding = 0 if of_x is None else torch.finfo(dtype).eps / 2 / 2.0**-24
        assert_near(got, want, size + 8, depth + int(rounding))


@pytest.mark.parametrize("dtype", HALF_AND_FULL, ids=str)
@pytest.mark.parametrize("rows, depth, columns", [(1, 720, 33), (50, 96, 72), (77, 100, 40)])
def test_swiglu(rows, depth, columns, dtype):
    x = random(rows, depth, dtype=dtype)
    gate, up = (random(columns, depth, dtype=dtype) / depth**0.5 for _ in range(2))
    got = swiglu(x, gate, up, out=poisoned(rows, columns, dtype=dtype), use="triton")
    wide, of_gate, of_up = x.double(), gate.double(), up.double()
    g, u = wide @ of_gate.T, wide @ of_up.T
    size_g, size_u = wide.abs() @ of_gate.abs().T, wide.abs() @ of_up.abs().T
    # silu's slope is at most 1.1.
    assert_near(got, F.silu(g) * u, 1.1 * size_g * u.abs() + F.silu(g).abs() * size_u + 1, depth)

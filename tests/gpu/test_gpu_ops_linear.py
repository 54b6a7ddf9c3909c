"""Linear layers as Python calls them: float, 8-bit and 4-bit weights against float64."""

from __future__ import annotations

from dataclasses import dataclass

import bounds
import numpy as np
import pytest
from bounds import Bound
from device_arrays import Guarded
from ops_cases import Random, full, given, nothing_else

from smolvla_edge import ops
from smolvla_edge.codes import CodeFormat, nearest_codes, round_rows

pytestmark = pytest.mark.gpu


@dataclass(frozen=True)
class Size:
    rows: int
    depth: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.depth}x{self.columns}"


SMALL = [Size(1, 8, 1), Size(3, 40, 17), Size(50, 720, 33), Size(65, 136, 130)]
FULL = [  # vision, connector, prefix and expert of SmolVLA; odd ones last
    Size(1024, 768, 768), Size(1024, 3072, 768), Size(64, 12288, 960), Size(241, 960, 1600),
    Size(241, 960, 2560), Size(50, 720, 1600), Size(50, 720, 2048), Size(50, 2048, 720),
    Size(50, 32, 720), Size(291, 960, 320), Size(1023, 776, 779), Size(129, 1544, 257),
]  # fmt: skip
SIZES = [*SMALL, *(full(size) for size in FULL)]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)
outs = pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])


@dataclass
class Terms:
    """Everything that is done to the sums, or (`some`) a part of it."""

    given: dict
    inputs: dict

    @staticmethod
    def of(random: Random, size: Size, activation: str | None) -> Terms:
        inputs = {
            "bias": given(random.floats(3, size.columns), pitch=size.columns + 3),
            "bias_row": given(np.array([2], np.int32)),
            "column_scale": given(random.floats(size.columns)),
            "residual": given(random.floats(size.rows, size.columns), pitch=size.columns + 4),
        }
        arrays = {name: x.array for name, x in inputs.items()}
        return Terms({"activation": activation, "scale": 0.75, **arrays}, inputs)

    def finish(self, sums: Bound, exact: bool) -> Bound:
        values = {name: Bound.exact(x.values) for name, x in self.inputs.items()}
        y = sums + Bound.exact(self.inputs["bias"].values[2])
        if self.given["activation"] == "silu":
            y = bounds.silu(y, exact)
        elif self.given["activation"] == "gelu_tanh":
            y = bounds.gelu_tanh(y, exact)
        y = y * Bound.exact(0.75) * values["column_scale"]
        return y + values["residual"]


def compare(call, want: Bound, out: Guarded, out_dtype: str, *inputs) -> None:
    with nothing_else(*inputs, out=out):
        assert call(out.array) is out.array
    want.stored(out_dtype).check(out.read())


@sizes
@outs
@pytest.mark.parametrize("dtypes", ["float32 float32", "float32 bfloat16", "bfloat16 bfloat16"])
def test_linear(random, size, dtypes, out_dtype):
    x_dtype, w_dtype = dtypes.split()
    pitch = -(-size.depth // 8) * 8 + 8  # 16 bytes of bfloat16 more than a row
    x = given(random.floats(size.rows, size.depth), x_dtype, pitch=pitch)
    fast = x_dtype == "bfloat16"
    w = given(random.floats(size.columns, size.depth), w_dtype, pitch=pitch if fast else None)
    out = Guarded((size.rows, size.columns), out_dtype, pitch=size.columns + size.columns % 2)
    product = bounds.product_tensor if fast else bounds.product_f32
    sums = product(x.values, w.values)
    compare(lambda y: ops.linear(x.array, w.array, out=y), sums, out, out_dtype, x, w)


@sizes
@pytest.mark.parametrize("activation", [None, "silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_term(random, size, dtype, activation):
    x = given(random.floats(size.rows, size.depth), dtype)
    w = given(random.floats(size.columns, size.depth, most=0.1), dtype)
    terms = Terms.of(random, size, activation)
    out = Guarded((size.rows, size.columns), "float32")
    exact = dtype == "float32"
    sums = (bounds.product_f32 if exact else bounds.product_tensor)(x.values, w.values)
    compare(
        lambda y: ops.linear(x.array, w.array, out=y, **terms.given),
        terms.finish(sums, exact), out, "float32", x, w, *terms.inputs.values(),
    )  # fmt: skip


def gated(gate: Bound, up: Bound, exact: bool) -> Bound:
    return bounds.silu(gate, exact) * up


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "size",
    [Size(3, 40, 8), Size(50, 720, 40), full(Size(50, 720, 2048))],
    ids=str,
)
def test_gated_linear(random, size, dtype):
    x = given(random.floats(size.rows, size.depth), dtype)
    gate, up = (random.floats(size.columns, size.depth, most=0.2) for _ in range(2))
    parts = [given(gate, dtype), given(up, dtype)]
    biases = [given(random.floats(size.columns)) for _ in range(2)]
    w = Guarded((2 * size.columns, size.depth), dtype)
    with nothing_else(*parts, out=w):
        ops.pack_gated(parts[0].array, parts[1].array, out=w.array)
    blocks = w.read().reshape(-1, 2, 8, size.depth)
    assert np.array_equal(blocks[:, 0].reshape(gate.shape), parts[0].values)
    assert np.array_equal(blocks[:, 1].reshape(up.shape), parts[1].values)
    bias = Guarded((2 * size.columns,), "float32")
    ops.pack_gated(biases[0].array, biases[1].array, out=bias.array)

    out = Guarded((size.rows, size.columns), "float32")
    exact = dtype == "float32"
    product = bounds.product_f32 if exact else bounds.product_tensor
    sums = [
        product(x.values, p.values) + Bound.exact(b.values)
        for p, b in zip(parts, biases, strict=True)
    ]
    compare(
        lambda y: ops.linear(x.array, w.array, bias.array, gated=True, out=y),
        gated(*sums, exact), out, "float32", x,
    )  # fmt: skip


def random_codes(random: Random, rows: int, depth: int, form: CodeFormat):
    """A weight whose codes take every value, with scales of any size."""
    scales = random.generator.uniform(0.001, 0.02, (rows, form.groups(depth)))
    scales = scales.astype(np.float16 if form.bits == 4 else np.float32).astype(np.float32)
    most = (7 if form.bits == 4 else 127) * 0.02
    return nearest_codes(random.floats(rows, depth, most=most), scales, form)


@sizes
@outs
@pytest.mark.parametrize("group", [32, 64, 128])
def test_linear_w4a16(random, size, group, out_dtype):
    codes = random_codes(random, size.columns, size.depth, CodeFormat(4, group))
    stored, scales = codes.stored()
    w = ops.pack_w4(stored, scales, group)
    assert (w.bits, w.out, w.columns, w.group_size) == (4, size.columns, size.depth, group)
    # Behind the rows is poison: of a ragged last block of 64 nothing beyond may be read.
    x = given(random.floats(size.rows, size.depth), "bfloat16", pitch=-(-size.depth // 8) * 8)
    terms = Terms.of(random, size, None)
    out = Guarded((size.rows, size.columns), out_dtype, pitch=size.columns + size.columns % 2)
    sums = bounds.product_tensor(x.values, codes.weight(), more=-(-size.depth // 32) + 9)
    compare(
        lambda y: ops.linear_w4a16(x.array, w, out=y, **terms.given),
        terms.finish(sums, False), out, out_dtype, x, *terms.inputs.values(),
    )  # fmt: skip


def integer_product(x: np.ndarray, scales: np.ndarray, w) -> Bound:
    """The sum is exact; it is rounded to float32, and so are the scales' product and theirs."""
    codes = np.asarray(w.codes, np.float64)
    sums = Bound.exact(x.astype(np.float64) @ codes.T).rounded()
    factors = Bound.exact(scales[:, None]) * Bound.exact(w.scales[:, 0][None])
    return sums * factors


@sizes
@outs
@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
def test_linear_w8a8(random, size, x_dtype, out_dtype):
    codes = random_codes(random, size.columns, size.depth, CodeFormat(8))
    w = ops.pack_w8(*codes.stored())
    x = given(random.floats(size.rows, size.depth), x_dtype, pitch=size.depth + 2 - size.depth % 2)
    quantized = Guarded((size.rows, ops.quantized_row_bytes(size.depth)), "int8")
    rows = ops.quantize_rows(x.array, ops.QuantizedRows(quantized.array, size.depth))
    quantized.check()
    x.guarded.check(written=False)
    terms = Terms.of(random, size, None)
    out = Guarded((size.rows, size.columns), out_dtype, pitch=size.columns + size.columns % 2)
    sums = integer_product(*round_rows(x.values), codes)
    compare(
        lambda y: ops.linear_w8a8(rows, w, out=y, **terms.given),
        terms.finish(sums, False), out, out_dtype, *terms.inputs.values(),
    )  # fmt: skip


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "size",
    [Size(3, 40, 5), Size(50, 144, 24), full(Size(50, 720, 2048))],
    ids=str,
)
def test_gated_weights_of_codes(random, size, bits):
    form = CodeFormat(4, 32) if bits == 4 else CodeFormat(8)
    codes = random_codes(random, 2 * size.columns, size.depth, form)
    stored, scales = codes.stored()
    out = Guarded((size.rows, size.columns), "float32")
    if bits == 4:
        w = ops.pack_w4(stored, scales, 32, gated=True)
        x = given(random.floats(size.rows, size.depth), "bfloat16")
        sums = bounds.product_tensor(x.values, codes.weight(), more=-(-size.depth // 32) + 9)
        call = lambda y: ops.linear_w4a16(x.array, w, out=y)  # noqa: E731
    else:
        w = ops.pack_w8(stored, scales, gated=True)
        x = given(random.floats(size.rows, size.depth))
        quantized = Guarded((size.rows, ops.quantized_row_bytes(size.depth)), "int8")
        rows = ops.quantize_rows(x.array, ops.QuantizedRows(quantized.array, size.depth))
        sums = integer_product(*round_rows(x.values), codes)
        call = lambda y: ops.linear_w8a8(rows, w, out=y)  # noqa: E731
    assert (w.out, w.gated) == (size.columns, True)
    parts = [
        Bound(sums.value[:, a], sums.error[:, a]) for a in np.split(np.arange(2 * size.columns), 2)
    ]
    compare(call, gated(*parts, False), out, "float32", x)


def test_the_residual_may_be_the_result(random):
    x = given(random.floats(50, 64), "bfloat16")
    w = given(random.floats(40, 64), "bfloat16")
    y = given(random.floats(50, 40), pitch=48)
    want = bounds.product_tensor(x.values, w.values) + Bound.exact(y.values)
    with nothing_else(x, w, out=y.guarded):
        ops.linear(x.array, w.array, residual=y.array, out=y.array)
    want.check(y.guarded.read())

"""Norms, integers, positions, copies, pictures and the flow's step, as Python calls them."""

from __future__ import annotations

import bounds
import numpy as np
import pytest
from bounds import Bound
from device_arrays import Guarded
from ops_cases import full, given, nothing_else

from smolvla_edge import ops
from smolvla_edge.codes import round_rows

pytestmark = pytest.mark.gpu

FULL = [(1024, 768), (291, 960), (50, 2048), (1, 65536)]
SHAPES = [(1, 1), (3, 7), (5, 33), (50, 720), *(full(shape) for shape in FULL)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def even(columns: int) -> int:
    """A pitch for bfloat16: rows begin at whole words."""
    return columns + columns % 2


def norm_bound(x, weight, bias, eps: float) -> Bound:
    """As rows.cu takes it: mean and sum of squares by a warp, then three factors."""
    x = Bound.exact(x)
    count = x.value.shape[1]
    roundings = bounds.dot_lanes(count)
    if bias is not None:
        total = Bound(
            x.value.sum(1, keepdims=True),
            roundings * bounds.F32 * np.abs(x.value).sum(1, keepdims=True) * 1.001,
        )
        mean = Bound(total.value / count, total.error / count).rounded()
        x = x - mean
    squares = x * x
    total = Bound(
        squares.value.sum(1, keepdims=True),
        squares.error.sum(1, keepdims=True)
        + roundings * bounds.F32 * squares.most.sum(1, keepdims=True) * 1.001,
    )
    mean_square = Bound(total.value / count, total.error / count).rounded() + Bound.exact(eps)
    slope = 0.5 * (mean_square.value - mean_square.error) ** -1.5
    factor = mean_square.through(lambda v: v**-0.5, slope, 3 * bounds.F32)
    y = x * factor * Bound.exact(weight)
    return y if bias is None else y + Bound.exact(bias)


def norm_inputs(random, shape, offset: float = 0.0):
    x = given(random.floats(*shape) + np.float32(offset), pitch=shape[1] + 3)
    weight, bias = (given(random.floats(shape[1])) for _ in range(2))
    return x, weight, bias


@shapes
@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("center", [False, True], ids=["rms", "layer"])
def test_norms(random, shape, center, out_dtype):
    x, weight, bias = norm_inputs(random, shape, offset=0.5)
    out = Guarded(shape, out_dtype, pitch=even(shape[1]) + 2)
    with nothing_else(x, weight, bias, out=out):
        if center:
            ops.layer_norm(x.array, weight.array, bias.array, 1e-5, out.array)
        else:
            ops.rms_norm(x.array, weight.array, 1e-5, out.array)
    want = norm_bound(x.values, weight.values, bias.values if center else None, 1e-5)
    want.stored(out_dtype).check(out.read())


def decode(rows: np.ndarray, columns: int):
    """int8 codes and float32 scales of QuantizedRows, by the words of ops/storage.h."""
    words = -(-columns // 32) * 8
    scales = rows[:, 4 * (words + words // 8 + 1) :][:, :4].copy().view(np.float32)[:, 0]
    return rows[:, :columns], rows[:, columns : 4 * words], scales


@shapes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantize_rows(random, shape, dtype):
    values = random.floats(*shape) * random.floats(shape[0], 1, most=100)
    values[0] = 0
    x = given(values, dtype, pitch=even(shape[1]))
    out = Guarded((shape[0], ops.quantized_row_bytes(shape[1])), "int8")
    with nothing_else(x, out=out):
        ops.quantize_rows(x.array, ops.QuantizedRows(out.array, shape[1]))
    codes, behind, scales = decode(out.read(), shape[1])
    want_codes, want_scales = round_rows(x.values)
    assert np.array_equal(codes, want_codes) and np.array_equal(scales, want_scales)
    assert not behind.any()


def test_rows_without_a_number_keep_that_in_their_scale(random):
    values = random.floats(3, 40)
    values[0, 7], values[1, 39] = np.nan, np.inf
    x = given(values)
    out = Guarded((3, ops.quantized_row_bytes(40)), "int8")
    ops.quantize_rows(x.array, ops.QuantizedRows(out.array, 40))
    codes, _, scales = decode(out.read(), 40)
    assert np.isnan(scales[:2]).all() and np.isfinite(scales[2])
    assert not codes[:2].any() and codes[2].any()


@shapes
def test_a_norm_writes_integers(random, shape):
    x, weight, _ = norm_inputs(random, shape)
    out = Guarded((shape[0], ops.quantized_row_bytes(shape[1])), "int8")
    rows = ops.QuantizedRows(out.array, shape[1])
    with nothing_else(x, weight, out=out):
        assert ops.rms_norm(x.array, weight.array, 1e-5, rows) is rows
    codes, _, scales = decode(out.read(), shape[1])
    want = norm_bound(x.values, weight.values, None, 1e-5)
    largest = want.most.max(axis=1, keepdims=True)
    # Half a code for rounding; the value, the inverse scale and their product are rounded before,
    # and the scale after.
    step = largest / 127
    Bound(want.value, 0.5 * step + 1.001 * want.error * 2 + 6 * bounds.F32 * largest).check(
        codes * scales[:, None].astype(np.float64)
    )
    assert (np.abs(codes).max(axis=1) == 127).all()


@shapes
@pytest.mark.parametrize("dtypes", ["float32 bfloat16", "bfloat16 float32", "float32 float32"])
def test_copy_rows(random, shape, dtypes):
    x_dtype, out_dtype = dtypes.split()
    x = given(random.floats(*shape), x_dtype, pitch=even(shape[1]) + 2)
    out = Guarded(shape, out_dtype, pitch=even(shape[1]))
    with nothing_else(x, out=out):
        ops.copy_rows(x.array, 0.3, out.array)
    scaled = x.values * np.float32(0.3)  # one rounding, as the kernel's
    want = given(scaled, out_dtype).values
    assert np.array_equal(out.read(), want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("first", [None, 5])
@pytest.mark.parametrize(
    "shape", [(1, 1, 2), (7, 3, 10), (50, 15, 64), full((241, 15, 64))], ids=str
)
def test_rope(random, shape, first, dtype):
    rows, heads, width = shape
    values = random.floats(*shape)
    x = given(values, dtype, pitch=heads * width + 4)
    angles = random.floats(rows + 7, width // 2, most=3)
    cosine, sine = (given(f(angles), pitch=width // 2 + 1) for f in (np.cos, np.sin))
    position = None if first is None else given(np.array([first], np.int32))
    with nothing_else(cosine, sine, position, out=x.guarded):
        ops.rope(x.array, cosine.array, sine.array, position and position.array)
    at = slice(first or 0, (first or 0) + rows)
    co, si = (Bound.exact(t.values[at][:, None]) for t in (cosine, sine))
    a, b = (Bound.exact(half) for half in np.split(x.values, 2, axis=2))
    halves = [a * co - b * si, b * co + a * si]  # a fused multiply-add rounds once less
    want = Bound(
        *(np.concatenate([getattr(h, n) for h in halves], axis=2) for n in ("value", "error"))
    )
    want.stored(dtype).check(x.guarded.read())


@pytest.mark.parametrize("pull", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (50, 32), (7, 200)], ids=str)
def test_flow_step(random, shape, pull):
    x, v, previous = (given(random.floats(*shape), pitch=shape[1] + 1) for _ in range(3))
    schedule = given(random.floats(10, 3), pitch=5)
    step, weight = given(np.array([7], np.int32)), given(random.floats(shape[0]))
    rest = {"previous": previous.array, "weight": weight.array} if pull else {}
    with nothing_else(v, previous, schedule, step, weight, out=x.guarded):
        ops.flow_step(x.array, v.array, schedule.array, step.array, **rest)
    dt, t, gain = (Bound.exact(number) for number in schedule.values[7])
    at, velocity = Bound.exact(x.values), Bound.exact(v.values)
    if pull:
        clean = at - t * velocity
        error = Bound.exact(previous.values) - clean
        velocity = velocity - gain * (error * Bound.exact(weight.values[:, None]))
    (at + dt * velocity).check(x.guarded.read())


def test_advance():
    number = given(np.array([41], np.int32))
    for _ in range(3):
        ops.advance(number.array)
    number.guarded.check()
    assert number.guarded.read().tolist() == [44]


# --- pictures -------------------------------------------------------------------------------------


def letterboxed(frame: np.ndarray, height: int, width: int) -> Bound:
    """LeRobot's resize_with_pad, and how far rounded positions may take it."""
    y_in, x_in = frame.shape[:2]
    ratio = max(x_in / width, y_in / height)
    inner = (
        (int(y_in / ratio), int(x_in / ratio))
        if (y_in, x_in) != (height, width)
        else (height, width)
    )
    unit = frame.astype(np.float64) / (255 if frame.dtype == np.uint8 else 1)
    taps, off = [], 0.0
    for size_in, size_out in zip((y_in, x_in), inner, strict=True):
        at = np.maximum(0, (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5)
        first = np.minimum(at.astype(int), size_in - 1)
        taps.append((first, np.minimum(first + 1, size_in - 1), at - first))
        # The scale, two operations and the difference are rounded, of numbers up to the size.
        off += 4 * bounds.F32 * (size_in + 1)
    (y0, y1, dy), (x0, x1, dx) = taps
    dy, dx = dy[:, None, None], dx[None, :, None]
    rows = [unit[y][:, x0] * (1 - dx) + unit[y][:, x1] * dx for y in (y0, y1)]
    mixed = (rows[0] * (1 - dy) + rows[1] * dy) * 2 - 1
    # Neighbours differ by at most 1, which 2x - 1 doubles; twelve roundings of numbers up to 1.
    value = np.full((3, height, width), -1.0)
    value[:, height - inner[0] :, width - inner[1] :] = mixed.transpose(2, 0, 1)
    error = np.where(value == -1.0, 0, 2 * off + 2 * 12 * bounds.F32)
    error[:, height - inner[0] :, width - inner[1] :] = 2 * off + 2 * 12 * bounds.F32
    return Bound(value, error)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    "sizes",
    [
        (7, 5, 7, 5), (48, 64, 32, 32), (5, 9, 33, 20), (1, 1, 4, 4), (30, 4, 8, 16),
        full((480, 640, 512, 512)), full((1080, 1921, 512, 512)),
    ],
    ids=str,
)  # fmt: skip
def test_letterbox(random, sizes, dtype):
    frame_height, frame_width, height, width = sizes
    shape = (frame_height, frame_width, 3)
    values = random.generator.integers(0, 256, shape, np.uint8)
    if dtype == "float32":
        values = (values / 255).astype(np.float32)
    # A frame of bytes may begin anywhere.
    frame = given(values, dtype, shift=1 if dtype == "uint8" else 0)
    out = Guarded((3, height, width), "float32")
    with nothing_else(frame, out=out):
        ops.letterbox(frame.array, height, width, out.array)
    letterboxed(values, height, width).check(out.read())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "sizes", [(4, 6, 2), (3, 3, 3), (32, 64, 16), full((512, 512, 16))], ids=str
)
def test_patchify(random, sizes, dtype):
    height, width, patch = sizes
    pixels = given(random.floats(3, height, width))
    down, across = height // patch, width // patch
    cut = pixels.values.reshape(3, down, patch, across, patch).transpose(1, 3, 0, 2, 4)
    want = given(cut.reshape(down * across, -1), dtype).values
    out = Guarded(want.shape, dtype, pitch=even(want.shape[1]) + 2)
    with nothing_else(pixels, out=out):
        ops.patchify(pixels.array, patch, out.array)
    assert np.array_equal(out.read(), want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [(2, 2, 3), (6, 3, 5), (8, 1, 4), full((32, 4, 768))], ids=str)
def test_pixel_shuffle(random, sizes, dtype):
    side, scale, columns = sizes
    x = given(random.floats(side * side, columns), dtype, pitch=even(columns))
    cells = side // scale
    joined = x.values.reshape(cells, scale, cells, scale, columns).transpose(0, 2, 1, 3, 4)
    want = joined.reshape(cells * cells, -1)
    out = Guarded(want.shape, dtype, pitch=even(want.shape[1]))
    with nothing_else(x, out=out):
        ops.pixel_shuffle(x.array, scale, out.array)
    assert np.array_equal(out.read(), want)

"""What plans need that leave work out: rows and patches by number, how far rows and frames are
apart, keys and values at scattered positions, a step that remembers the last one."""

from __future__ import annotations

import numpy as np
import pytest
from device_arrays import Guarded
from ops_cases import given, nothing_else

from smolvla_edge import ops

pytestmark = pytest.mark.gpu


def scattered(random, count: int, of: int) -> np.ndarray:
    return random.generator.permutation(of)[:count].astype(np.int32)


@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (16, 960)], ids=str)
def test_rows_by_number(random, shape):
    count, columns = shape
    x = given(random.floats(2 * count, columns), pitch=columns + 3)
    ids = given(scattered(random, count, 2 * count))
    out = Guarded(shape, "float32", pitch=columns + 1)
    with nothing_else(x, ids, out=out):
        ops.pick_rows(x.array, ids.array, out.array)
    np.testing.assert_array_equal(out.read(), x.values[ids.values])
    there = given(random.floats(2 * count, columns))
    with nothing_else(ids, out=there.guarded):
        ops.put_rows(out.array, ids.array, there.array)
    want = there.values.copy()
    want[ids.values] = x.values[ids.values]
    np.testing.assert_array_equal(there.guarded.read(), want)


@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (50, 720)], ids=str)
def test_add_rows(random, shape):
    x, z = given(random.floats(*shape), pitch=shape[1] + 3), given(random.floats(*shape))
    out = Guarded(shape, "float32", pitch=shape[1] + 1)
    with nothing_else(x, z, out=out):
        ops.add_rows(x.array, z.array, -0.75, out.array)
    np.testing.assert_allclose(out.read(), x.values - 0.75 * z.values, rtol=0, atol=1e-6)
    with nothing_else(z, out=x.guarded):  # in place
        ops.add_rows(x.array, z.array, out=x.array)
    np.testing.assert_array_equal(x.guarded.read(), x.values + z.values)


def test_compare_rows(random):
    a, b = given(random.floats(9, 200), pitch=203), given(random.floats(9, 200))
    out = Guarded((9, 5), "float32", pitch=7)
    with nothing_else(a, b, out=out):
        ops.compare_rows(a.array, b.array, 190, out.array)
    x, y = (v.values[:, :190].astype(np.float64) for v in (a, b))
    want = [(x * y).sum(1), (x * x).sum(1), (y * y).sum(1), ((x - y) ** 2).sum(1)]
    got = out.read()
    np.testing.assert_allclose(got[:, :4], np.stack(want, 1), rtol=1e-6, atol=1e-5)
    difference = np.abs(a.values[:, :190] - b.values[:, :190]).max(1)
    np.testing.assert_array_equal(got[:, 4], difference)


def test_what_is_no_number_stays_none(random):
    values = random.floats(3, 64)
    values[1, 40] = np.nan
    a, b, out = given(values), given(random.floats(3, 64)), Guarded((3, 5), "float32")
    ops.compare_rows(a.array, b.array, out=out.array)
    assert np.isnan(out.read()[:, 4]).tolist() == [False, True, False]


def blocks(pixels: np.ndarray, side: int) -> np.ndarray:
    """[3, height, width] -> [down, across, 3 * side * side]."""
    down, across = pixels.shape[1] // side, pixels.shape[2] // side
    parts = pixels.reshape(3, down, side, across, side).transpose(1, 3, 0, 2, 4)
    return parts.reshape(down, across, -1)


def test_block_change(random):
    patch, scale, height, width = 8, 2, 48, 64
    old = random.floats(3, height, width).clip(-1, 1)
    new = old.copy()
    new[:, :16, 16:32] = random.floats(3, 16, 16).clip(-1, 1)
    new[1, 40, 3] += np.float32(2**-12)
    pixels, reference = given(new), given(old)
    out = Guarded((3, 4), "float32")
    with nothing_else(pixels, reference, out=out):
        ops.block_change(pixels.array, reference.array, patch, scale, out.array)
    moved = blocks(np.abs(new - old).astype(np.float64), patch).mean(2) / 2
    want = moved.reshape(3, scale, 4, scale).max((1, 3))
    got = out.read()
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert (got > 0).tolist() == (want > 0).tolist() and (want > 0).sum() == 2


def test_copy_blocks(random):
    side, ids = 16, given(np.array([5, 0, 11], np.int32))
    pixels, there = given(random.floats(3, 48, 64)), given(random.floats(3, 48, 64))
    with nothing_else(pixels, ids, out=there.guarded):
        ops.copy_blocks(pixels.array, ids.array, side, there.array)
    want = blocks(there.values.copy(), side)
    for block in ids.values:
        want[block // 4, block % 4] = blocks(pixels.values, side)[block // 4, block % 4]
    np.testing.assert_array_equal(blocks(there.guarded.read(), side), want)


def test_some_patches(random):
    pixels, ids = given(random.floats(3, 32, 48)), given(np.array([7, 0, 23, 9], np.int32))
    whole, some = Guarded((24, 192), "float32"), Guarded((4, 192), "float32")
    ops.patchify(pixels.array, 8, whole.array)
    with nothing_else(pixels, ids, out=some):
        ops.patchify(pixels.array, 8, some.array, ids=ids.array)
    np.testing.assert_array_equal(some.read(), whole.read()[ids.values])


@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16"])
def test_scatter_kv(random, cache_dtype):
    rows, heads, capacity = 5, 2, 16
    keys, values = (given(random.floats(rows, heads, 64)) for _ in range(2))
    positions = given(np.array([9, 2, 15, 0, 99], np.int32))  # the last is outside: dropped
    caches = [given(random.floats(heads, capacity, 64), cache_dtype) for _ in range(2)]
    ops.scatter_kv(keys.array, values.array, caches[0].array, caches[1].array, positions.array)
    for cache, new in zip(caches, (keys, values), strict=True):
        got, want = cache.guarded.read(), cache.values.copy()
        want[:, positions.values[:4]] = new.values[:4].transpose(1, 0, 2)
        tolerance = 0 if cache_dtype == "float32" else 2**-8
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=0)
        untouched = np.delete(np.arange(capacity), positions.values[:4])
        np.testing.assert_array_equal(got[:, untouched], cache.values[:, untouched])


def test_a_step_that_remembers(random):
    x, v, last = (given(random.floats(50, 32)) for _ in range(3))
    schedule = given(np.array([[0, 0, 0, 0, 0], [-0.1, 0.5, 0, 1.5, -0.5]], np.float32))
    step = given(np.array([1], np.int32))
    ops.flow_step(x.array, v.array, schedule.array, step.array, last=last.array)
    want = x.values - np.float32(0.1) * (1.5 * v.values - 0.5 * last.values)
    np.testing.assert_allclose(x.guarded.read(), want, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(last.guarded.read(), v.values)

"""Ways for arrays to come in, beside the ones that all other tests use."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from device_arrays import Guarded, empty, emulated, to_device
from ops_cases import given

from smolvla_edge import ops
from smolvla_edge.errors import InputError

pytestmark = pytest.mark.gpu


def interface_of(guarded: Guarded, **changes):
    """The array through __cuda_array_interface__ alone."""
    array = guarded.array
    if emulated():
        held = array.elements()
        said = {"shape": array.shape, "strides": held.strides, "typestr": held.dtype.str,
                "data": (held.ctypes.data, False), "version": 3, "stream": None}  # fmt: skip
    else:
        said = dict(array.__cuda_array_interface__)
    return SimpleNamespace(__cuda_array_interface__=said | changes, owner=guarded)


@pytest.mark.parametrize("changes", [{}, {"stream": 1, "version": 3}], ids=["plain", "stream"])
def test_cuda_array_interface(random, changes):
    x = given(random.floats(7, 40), pitch=44)
    out = Guarded((7, 40), "float32", pitch=41)
    written = interface_of(out)
    assert ops.copy_rows(interface_of(x.guarded, **changes), 2.0, written) is written
    assert np.array_equal(out.read(), x.values * 2)
    out.check()


def test_memory_that_may_not_be_written(random):
    x = given(random.floats(7, 40))
    out = Guarded((7, 40), "float32")
    data = (interface_of(out).__cuda_array_interface__["data"][0], True)
    with pytest.raises(
        InputError, match="out: expected an array that may be written, got a read-only"
    ):
        ops.copy_rows(x.array, 2.0, interface_of(out, data=data))
    assert (
        ops.copy_rows(interface_of(x.guarded, data=(x_address(x), True)), 2.0, out.array)
        is out.array
    )


def x_address(x) -> int:
    return interface_of(x.guarded).__cuda_array_interface__["data"][0]


def test_the_cpus_memory_behind_an_interface_is_found_out():
    if emulated():
        pytest.skip("the emulator takes all memory for a GPU's")
    host = np.ones((4, 8), np.float32)
    said = {"shape": (4, 8), "typestr": "<f4", "data": (host.ctypes.data, False), "version": 3}
    with pytest.raises(
        InputError, match=r"x: expected memory of a CUDA GPU, got .* in the CPU's memory"
    ):
        ops.copy_rows(SimpleNamespace(__cuda_array_interface__=said), 1.0, empty((4, 8)))


def test_rows_may_repeat(random):
    """A broadcast row is read again and again; one that is written is refused."""
    x = given(random.floats(1, 40))
    out = Guarded((5, 40), "float32")
    repeated = interface_of(x.guarded, shape=(5, 40), strides=(0, 4))
    ops.copy_rows(repeated, 1.0, out.array)
    assert np.array_equal(out.read(), np.repeat(x.values, 5, axis=0))
    with pytest.raises(InputError, match=r"out: expected .* with rows that do not share memory"):
        ops.copy_rows(out.array, 1.0, repeated)


def test_a_row_of_its_own_has_any_pitch(random):
    x = given(random.floats(1, 40))
    out = Guarded((1, 40), "float32")
    ops.copy_rows(interface_of(x.guarded, strides=(4, 4)), 1.0, out.array)
    assert np.array_equal(out.read(), x.values)


def test_where_results_cannot_be_made(emulator):
    with pytest.raises(InputError, match=r"out: expected bfloat16 \[4, 8\] in GPU memory"):
        ops.copy_rows(to_device(np.ones((4, 8), np.float32)))


def test_numbers_of_both_ranks(random):
    tables = [given(f(random.floats(9, 2))) for f in (np.cos, np.sin)]
    values = random.floats(3, 1, 4)
    turned = []
    for number in (np.array(4, np.int32), np.array([4], np.int32)):
        x = given(values)
        ops.rope(x.array, tables[0].array, tables[1].array, to_device(number))
        turned.append(x.guarded.read())
    assert np.array_equal(*turned) and not np.array_equal(turned[0], values)

"""Integer weights on their way into GPU memory: what is refused, held and given back."""

from __future__ import annotations

import numpy as np
import pytest
from device_arrays import Guarded, empty

from smolvla_edge import ops
from smolvla_edge.errors import BackendError, InputError

pytestmark = pytest.mark.gpu

CODES, SCALES = np.zeros((64, 32), np.int8), np.ones(64, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"codes": np.zeros((4, 32), np.int8)},
            "codes: expected a numpy array of uint8 with 2 axes, got int8",
        ),
        ({"codes": np.zeros(32, np.uint8)}, "codes: expected .* got uint8"),
        ({"codes": [1, 2]}, "codes: expected a numpy array of uint8 with 2 axes, got list"),
        ({"codes": np.zeros((32, 4), np.uint8).T}, "codes: expected a contiguous array"),
        (
            {"codes": np.zeros((4, 30), np.uint8)},
            "codes: expected 1 to 65536 columns, a multiple of 8, got 60",
        ),
        ({"scales": np.ones((4, 2), np.float32)}, "scales: expected a numpy array of float16"),
        ({"scales": np.ones((4, 3), np.float16)}, "scales: expected contiguous uint16 .4, 2"),
        ({"scales": np.full((4, 2), np.inf, np.float16)}, "codes: expected scales that are finite"),
        ({"scales": np.full((4, 2), -1, np.float16)}, "codes: expected scales that are finite"),
        ({"group_size": 48}, "group_size: expected 32, 64 or 128, got 48"),
        ({"group_size": None}, "group_size: expected 32, 64 or 128, got 0"),
        ({"device": -1}, "device: expected an integer of 0 or more, got -1"),
    ],
)
def test_refused_weights_of_4_bits(changes, message):
    arguments = {
        "codes": np.zeros((4, 32), np.uint8),
        "scales": np.ones((4, 2), np.float16),
        "group_size": 32,
    }
    with pytest.raises(InputError, match=message):
        ops.pack_w4(**(arguments | changes))


def test_refused_weights_of_8_bits():
    codes, scales = np.zeros((4, 32), np.int8), np.ones(4, np.float32)
    with pytest.raises(InputError, match=r"expected codes in .-127, 127., got -128"):
        ops.pack_w8(np.full((4, 32), -128, np.int8), scales)
    with pytest.raises(
        InputError, match=r"scales: expected contiguous float32 .4., got float32 .3"
    ):
        ops.pack_w8(codes, scales[:3])
    with pytest.raises(InputError, match="an even number"):
        ops.pack_w8(codes[:3], scales[:3], gated=True)


def test_a_gpu_that_is_not_there(emulator):
    with pytest.raises(BackendError, match="choosing the GPU"):
        ops.pack_w8(CODES, SCALES, device=7)
    emulator.remove_device(True)
    with pytest.raises(BackendError):
        ops.advance(Guarded((1,), "int32").array)


def test_no_memory_for_a_weight(emulator):
    emulator.fail_allocation(2)
    before = emulator.allocations_in_use()
    with pytest.raises(BackendError, match="not enough free memory"):
        ops.pack_w8(CODES, SCALES)
    assert emulator.allocations_in_use() == before


def test_a_handle_keeps_and_returns_its_memory(emulator):
    before = emulator.device_bytes_in_use()
    w = ops.pack_w8(CODES, SCALES)
    assert emulator.device_bytes_in_use() - before == w.nbytes >= CODES.nbytes + SCALES.nbytes
    x = ops.QuantizedRows(empty((3, ops.quantized_row_bytes(32)), "int8"), 32)
    ops.linear_w8a8(x, w, out=empty((3, 64)))
    del w
    assert emulator.device_bytes_in_use() == before

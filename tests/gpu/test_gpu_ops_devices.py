"""Several GPUs: an operator works on the one that its arrays are on, and opens no other.

A context takes hundreds of megabytes of a GPU that may be somebody else's. In threads of their own,
because each begins with the first GPU as its current one.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from device_arrays import Producer

from smolvla_edge import ops

pytestmark = pytest.mark.gpu

DLPACK_CUDA = 2
ROWS, COLUMNS = 4, 64
BYTES = ROWS * COLUMNS * 4


def in_a_thread(work) -> None:
    failed: list[BaseException] = []

    def run():
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@pytest.fixture
def second(emulator):
    """Memory for two matrices on the second of two GPUs."""
    emulator.use_devices(2)
    memory = emulator.allocate(1, 2 * BYTES)
    yield memory
    emulator.release(1, memory)


def through_dlpack(memory):
    return Producer((ROWS, COLUMNS), device=(DLPACK_CUDA, 1), data=memory)


def through_the_interface(memory):
    said = {"shape": (ROWS, COLUMNS), "typestr": "<f4", "data": (memory, False), "version": 3}
    return SimpleNamespace(__cuda_array_interface__=said)


@pytest.mark.parametrize("protocol", [through_dlpack, through_the_interface])
def test_arrays_of_the_second(emulator, second, protocol):
    x, y = protocol(second), protocol(second + BYTES)
    in_a_thread(lambda: ops.copy_rows(x, 0.0, y))
    assert emulator.opened(1) and not emulator.opened(0)


def test_a_weight_on_the_second(emulator):
    emulator.use_devices(2)

    def make_and_lose():
        assert ops.pack_w8(np.zeros((64, 32), np.int8), np.ones(64, np.float32), device=1).nbytes

    in_a_thread(make_and_lose)
    assert emulator.opened(1) and not emulator.opened(0)


def test_the_first_is_opened_for_its_own(emulator):
    """What the tests above look at can be seen."""
    emulator.use_devices(2)
    in_a_thread(lambda: ops.pack_w8(np.zeros((64, 32), np.int8), np.ones(64, np.float32)))
    assert emulator.opened(0) and not emulator.opened(1)

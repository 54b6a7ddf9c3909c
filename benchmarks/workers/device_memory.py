"""Memory of the GPU that this process took; imported by the workers, needs the driver alone.

NVML tells what the whole device holds. Workers compute one at a time, so what it grows by while one
works is that one's: weights, buffers, graphs, workspaces and the CUDA context (some 400 MiB).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class DeviceMemory:
    """Adds up what the first device's memory grew by inside of `during`, in MiB.

    own_mib stays None where there is no NVML (no driver, Jetson).
    """

    def __init__(self) -> None:
        self._library: Any = None
        self._device = ctypes.c_void_p()
        self.own_mib: float | None = None
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        first = ctypes.byref(self._device)
        if library.nvmlInit_v2() == 0 and library.nvmlDeviceGetHandleByIndex_v2(0, first) == 0:
            self._library = library
            self.own_mib = 0.0

    def _used_mib(self) -> float | None:
        if self._library is None:
            return None
        memory = _Memory()
        if self._library.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(memory)) != 0:
            self._library = self.own_mib = None
            return None
        return memory.used / 2**20

    @contextmanager
    def during(self) -> Iterator[None]:
        before = self._used_mib()
        yield
        after = self._used_mib()
        if before is not None and after is not None and self.own_mib is not None:
            self.own_mib += after - before

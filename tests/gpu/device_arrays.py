"""Arrays in GPU memory for tests, the same in both worlds: torch tensors on a real GPU, under the
emulator memory of this process that says it is a GPU's.

dtypes by name: float32, bfloat16, int8, uint8, int32. numpy has no bfloat16, so on the host such
numbers are float32; `rounded` is what storing does to them.

Whatever is new here is poison, which is NaN or -1, and so is what lies before an array, behind it
and between its rows: a kernel that reads there computes NaN, one that writes there is seen
(`Guarded.check`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.backends.native import load_core

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from capsule_helpers import Producer

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "uint8": 1, "int32": 4}
POISON = 0xFF
ZONE = 512  # bytes of poison before and behind


def emulated() -> bool:
    return bool(load_core().cuda()["emulated"])


def to_device(values: NDArray[Any], dtype: str | None = None) -> Any:
    """A copy without gaps: of the array's own dtype, or of floats "bfloat16" (rounded)."""
    return Guarded(values.shape, dtype or str(values.dtype), values).array


def empty(shape: tuple[int, ...], dtype: str = "float32") -> Any:
    """Poison, without gaps."""
    return Guarded(shape, dtype).array


def to_host(array: Any) -> NDArray[Any]:
    """A copy, after everything that was asked of the GPU; bfloat16 becomes float32."""
    if isinstance(array, HostArray):
        return _decoded(array.elements().copy(), array.dtype)
    array = array.detach()
    return (array.float() if str(array.dtype) == "torch.bfloat16" else array).cpu().numpy()


def rounded(values: NDArray[Any]) -> NDArray[np.float32]:
    """float32 values after a way through bfloat16: nearest, ties to even."""
    return _decoded(_encoded(values, "bfloat16"), "bfloat16")


class HostArray(Producer):
    """Memory of this process as if it were a GPU's: what the emulator runs kernels on."""

    def __init__(self, buffer: NDArray[np.uint8], at: int, shape, strides, dtype: str):
        super().__init__(shape, dtype, strides=strides, data=buffer.ctypes.data + at, owner=buffer)
        self._at = at

    def elements(self) -> NDArray[Any]:
        """The memory itself: bfloat16 as uint16."""
        kind = np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)
        steps = tuple(s * kind.itemsize for s in self.strides)
        return np.ndarray(self.shape, kind, self.owner, self._at, steps)

    def view(self, first: int, last: int) -> HostArray:
        """Columns first..last of a matrix."""
        at = self._at + first * BYTES[self.dtype]
        return HostArray(self.owner, at, (self.shape[0], last - first), self.strides, self.dtype)


class Guarded:
    """An array inside of poison. pitch: elements from row to row, None for no gaps; shift: elements
    by which it begins beside a multiple of 256 bytes; values None: poison too."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: str = "float32",
        values: NDArray[Any] | None = None,
        *,
        pitch: int | None = None,
        shift: int = 0,
    ) -> None:
        size = BYTES[dtype]
        inner = int(np.prod(shape[1:]))
        pitch = inner if pitch is None else pitch
        compact = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        strides = tuple([pitch, *compact[1:]] if shape else [])
        rows = shape[0] if shape else 1
        self._at = ZONE + shift * size
        total = self._at + ((rows - 1) * pitch + inner) * size + ZONE
        host = _aligned(total)
        self._inside = HostArray(host, self._at, shape, strides, dtype)
        if values is not None:
            self._inside.elements()[...] = _encoded(values, dtype)
        self._before = host.copy()
        self._shape, self._strides, self._dtype = shape, strides, dtype
        if emulated():
            self._memory: Any = host
            self.array: Any = self._inside
            return
        import torch

        self._memory = torch.from_numpy(host.copy()).cuda()
        whole = self._memory[self._at :].view(getattr(torch, dtype))
        self.array = whole.as_strided(shape, strides)

    def read(self) -> NDArray[Any]:
        return to_host(self.array)

    def check(self, written: bool = True) -> None:
        """That nothing around the array has changed; not `written`: nor the array itself."""
        now = self._memory if isinstance(self._memory, np.ndarray) else self._memory.cpu().numpy()
        want = self._before.copy()
        if written:
            after = HostArray(now, self._at, self._shape, self._strides, self._dtype)
            HostArray(want, self._at, self._shape, self._strides, self._dtype).elements()[...] = (
                after.elements()
            )
        differ = np.flatnonzero(want != now)
        assert differ.size == 0, f"bytes {differ[:8] - self._at} from the array on were written"


def _aligned(size: int) -> NDArray[np.uint8]:
    room = np.full(size + 256, POISON, np.uint8)
    return room[-room.ctypes.data % 256 :][:size]


def _encoded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype != "bfloat16":
        return np.asarray(values, dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    # A carry out of the mantissa would make a number of some NaNs.
    return np.where(np.isnan(values), bits >> 16 | 0x40, nearest).astype(np.uint16)


def _decoded(elements: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype != "bfloat16":
        return elements
    return (elements.astype(np.uint32) << 16).view(np.float32)

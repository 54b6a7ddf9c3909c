"""Deterministic tensor values from a counter: the same bits in any language, in any chunk order.

    h      = FNV-1a-64(utf-8 name) xor seed
    z_i    = splitmix64 finaliser of h + (i + 1) * 0x9E3779B97F4A7C15,  i = flat row-major index
    u_i    = (z_i >> 40) * 2^-24                                         in [0, 1)
    value  = float32(center) + float32(amp) * float32(2 u_i - 1)         rounded after each step

The golden files were made from these values, so a checkpoint of any size is rebuilt from names and
shapes alone. Untrained, but of realistic scale: activations neither vanish nor explode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_STEP = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
CHUNK_ELEMS = 1 << 16  # 512 KiB of counters: the whole computation stays in the L2 cache


def tensor_scale(lerobot_name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(center, amp) of a weight by its LeRobot name; the first rule that matches decides."""
    if lerobot_name.endswith(".bias"):
        return 0.0, 0.2
    if "norm" in lerobot_name:
        return 1.0, 0.4
    if "position_embedding" in lerobot_name:
        return 0.0, 0.5
    amp = math.sqrt(3.0 / math.prod(shape[1:]))
    if "q_proj" in lerobot_name or "k_proj" in lerobot_name:
        amp *= 1.5
    elif "modality_projection" in lerobot_name:
        amp *= 0.1
    elif "action_out_proj" in lerobot_name:
        amp *= 0.5
    return 0.0, amp


def counter_values(
    name: str, seed: int, center: float, amp: float, count: int, start: int = 0
) -> NDArray[np.float32]:
    """float32 [count]: elements start .. start + count - 1 of the tensor `name`."""
    first = (_fnv1a(name) ^ seed) + (start + 1) * _STEP
    z = np.arange(count, dtype=np.uint64)
    z *= np.uint64(_STEP)
    z += np.uint64(first & _MASK)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    z >>= np.uint64(40)
    values = z.astype(np.float32)  # 24 bits: exact, like 2u - 1 below
    values *= np.float32(2.0**-23)
    values -= np.float32(1.0)
    values *= np.float32(amp)
    values += np.float32(center)
    return values


def weight_chunks(
    lerobot_name: str, shape: tuple[int, ...], dtype: str, seed: int = 0
) -> Iterator[NDArray[np.generic]]:
    """A weight's elements in order, in `dtype` (BF16 as uint16 bits), CHUNK_ELEMS at a time."""
    center, amp = tensor_scale(lerobot_name, shape)
    total = math.prod(shape)
    for start in range(0, total, CHUNK_ELEMS):
        count = min(CHUNK_ELEMS, total - start)
        yield narrow(counter_values(lerobot_name, seed, center, amp, count, start), dtype)


def narrow(values: NDArray[np.float32], dtype: str) -> NDArray[np.generic]:
    """Finite float32 rounded to nearest even in F32, F16 or BF16 (as uint16 bits)."""
    if dtype == "F32":
        return values
    if dtype == "F16":
        return values.astype(np.float16)
    if dtype != "BF16":
        raise ValueError(f"expected F32, F16 or BF16, got {dtype!r}")
    bits = values.view(np.uint32)
    return ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).astype(np.uint16)


def _fnv1a(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value

"""How long an operation should take on a device: the larger of its work and its traffic.

Two times for each: the floor, at the device's full rates with nothing else, and a prediction, at
the assumed shares below and with what a kernel costs besides. Neither was measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.devices import Device
from benchmarks.operations import Operation


@dataclass(frozen=True)
class Assumptions:
    """What no datasheet says. Shares are of the device's rates."""

    linear: float = 0.7
    attention: float = 0.45
    traffic: float = 0.75
    shortest_us: float = 2.0
    graph_us: float = 15.0


ASSUMED = Assumptions()
# Why, for the report: field -> sentence.
REASONS = {
    "linear": "of the tensor cores, for a matrix product that fills them. cuBLAS reaches 0.78 to "
    "0.80 on an AGX Orin (source 3)",
    "attention": "of the tensor cores. The softmax between its two products uses other units",
    "traffic": "of the memory's rate. 0.75 was read on an AGX Orin (source 3)",
    "shortest_us": "microseconds that the smallest kernel takes: it waits for memory twice",
    "graph_us": "microseconds to start a graph; 15 on an RTX 5070 Ti laptop "
    "(https://github.com/ahrefs/ocannl/issues/488)",
}
# The smallest tile of a block, rows x columns of the result (csrc/cuda/gemm_mma.cuh, gemm_f32.cu).
# Weights of 4 bits take their tokens by eight, and deal their columns to all processors
# (gemm_w4.cu).
_TILE, _TILE_F32 = (64, 32), (32, 32)
_TOKENS = 8


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def busy(operation: Operation, processors: int) -> float:
    """The part of a linear layer's multiplications that counts: rows are rounded up to tiles, and
    the last wave of tiles leaves processors idle."""
    rows = operation.rows
    if operation.bits == 4:
        return rows / _up(rows, _TOKENS)
    high, wide = _TILE_F32 if operation.bits == 32 else _TILE
    tiles = _up(rows, high) // high * (_up(operation.columns, wide) // wide)
    return rows / _up(rows, high) * tiles / _up(tiles, processors)


def traffic(operation: Operation, device: Device) -> float:
    """Bytes of one call that must come from memory: weights, and operands too large for the L2."""
    spilled = operation.activation_bytes > 0.5e6 * device.l2_mb
    return operation.weight_bytes + (operation.activation_bytes if spilled else 0.0)


def floor_us(operation: Operation, device: Device) -> float:
    """Microseconds of one call if the device did nothing but its work at its full rates."""
    moved = traffic(operation, device) / device.gbps * 1e-3
    work = operation.flops / device.tflops[operation.unit] * 1e-6 if operation.unit else 0.0
    return max(work, moved)


def predicted_us(operation: Operation, device: Device, assume: Assumptions = ASSUMED) -> float:
    """Microseconds of one call inside a graph."""
    moved = traffic(operation, device) / (device.gbps * assume.traffic) * 1e-3
    work = 0.0
    if operation.kind == "linear" and operation.flops:
        work = operation.flops / (device.rate(operation.unit) * assume.linear) * 1e6
        work /= busy(operation, device.processors)
    elif operation.flops:
        work = operation.flops / (device.rate(operation.unit) * assume.attention) * 1e6
    if operation.rides:
        return max(work, moved)
    return max(work, moved, assume.shortest_us) + device.node_us


@dataclass(frozen=True)
class Times:
    """Milliseconds of a stage or of a whole chunk; launches: kernels."""

    floor: float
    predicted: float
    launches: int

    def __add__(self, other: Times) -> Times:
        return Times(
            self.floor + other.floor,
            self.predicted + other.predicted,
            self.launches + other.launches,
        )


def times_of(
    operations: Iterable[Operation], device: Device, graphs: int = 0, assume: Assumptions = ASSUMED
) -> Times:
    """The sum over operations, and over starting so many graphs."""
    listed = list(operations)
    return Times(
        sum(o.calls * floor_us(o, device) for o in listed) * 1e-3,
        (sum(o.calls * predicted_us(o, device, assume) for o in listed) + graphs * assume.graph_us)
        * 1e-3,
        sum(o.kernels for o in listed),
    )

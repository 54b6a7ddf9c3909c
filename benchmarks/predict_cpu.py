"""The method of the predictions, tried where there are measurements: this project's CPUs.

The same counts over ceilings that were measured (docs/performance.md), against times that were
measured in the same runs. It tests the counts and the sum over stages. It says nothing about how
much of a GPU our kernels reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.operations import BF16, F32, INT8, PRECISIONS, Precision, Weights, operations
from benchmarks.report import table

SHARE = 0.85  # of the ceiling, for every operation; single linears reach 0.74 to 0.95
# On a CPU weights of 4 bits meet rows of int8.
_ON_CPU = {
    **PRECISIONS,
    "balanced": Precision("balanced", INT8, INT8, Weights(4, "int8", 64), BF16, F32),
}


@dataclass(frozen=True)
class Measured:
    """One row of docs/performance.md. gflops: ceilings of that run; ms: stage -> median."""

    where: str
    precision: str
    cameras: int
    words: int
    gflops: dict[str, float]
    ms: dict[str, float]


MEASURED = (
    Measured(
        "Zen 4, bfloat16, one call", "bfloat16", 1, 13, {"float32": 235, "bfloat16": 469},
        {"vision": 542, "prefix": 62, "flow": 260},
    ),
    Measured(
        "Zen 5, end to end, float32", "float32", 1, 12, {"float32": 575},
        {"vision": 462, "prefix": 50, "flow": 230},
    ),
    Measured(
        "Zen 4, integers end to end", "balanced", 2, 12,
        {"float32": 235, "bfloat16": 468, "int8": 930}, {"total": 1058},
    ),
)  # fmt: skip


def floors(model: Any, row: Measured) -> dict[str, float]:
    """Milliseconds at the full ceilings: stage -> time, and "total"."""
    listed = operations(model, row.cameras, row.words, _ON_CPU[row.precision])
    found: dict[str, float] = {}
    for o in listed:
        if o.flops:
            ms = o.calls * o.flops / row.gflops[o.unit] * 1e-6
            found[o.stage] = found.get(o.stage, 0.0) + ms
    return {**found, "total": sum(found.values())}


def comparison_table(model: Any) -> str:
    rows = []
    for row in MEASURED:
        floor = floors(model, row)
        for stage, ms in row.ms.items():
            guess = floor[stage] / SHARE
            rows.append(
                [row.where, stage, f"{floor[stage]:.0f}", f"{guess:.0f}", f"{ms:.0f}",
                 f"{guess / ms - 1:+.0%}"]
            )  # fmt: skip
    return table(["measured in", "stage", "floor ms", "predicted ms", "measured ms", "error"], rows)

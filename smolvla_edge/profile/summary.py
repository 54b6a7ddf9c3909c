"""The numbers of the tables. Sums are of whole nanoseconds, so that every total adds up exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from smolvla_edge.profile.records import GROUPS, Call, Op, Stage


@dataclass(frozen=True)
class Ceiling:
    """GFLOP/s of a loop of multiply-adds in registers on all threads, by arithmetic."""

    gflops: Mapping[str, float]
    threads: int

    def of(self, compute: str) -> float | None:
        return self.gflops.get(compute)


@dataclass(frozen=True)
class Row:
    """Several operations together. share: of the ceiling, weighted by time; None without flops."""

    name: str
    calls: int
    ns: int
    flops: int
    nbytes: int
    share: float | None
    shape: str = ""

    @property
    def ms(self) -> float:
        return self.ns / 1e6

    @property
    def gflops(self) -> float | None:
        return self.flops / self.ns if self.flops and self.ns else None

    @property
    def gbytes(self) -> float | None:
        return self.nbytes / self.ns if self.nbytes and self.ns else None

    def to_json(self, wall: int) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": self.shape,
            "calls": self.calls,
            "ms": self.ms,
            "share_of_call": self.ns / wall,
            "gflop_per_s": self.gflops,
            "share_of_ceiling": self.share,
            "gbyte_per_s": self.gbytes,
        }


@dataclass(frozen=True)
class Account:
    """Where the wall time of a call went; the parts add up to `wall`. Nanoseconds.

    operations: inside the backend's operations.  between: in stages, between operations.
    engine: in the engine, outside of stages.  python: before and after the engine.
    """

    wall: int
    operations: int
    between: int
    engine: int
    python: int

    def to_json(self) -> dict[str, float]:
        names = ("wall", "operations", "between", "engine", "python")
        return {f"{name}_ms": getattr(self, name) / 1e6 for name in names}


def account(call: Call) -> Account:
    inside = sum(stage.duration for stage in call.stages)
    operations = sum(op.duration for op in call.ops)
    # A call without stages spent everything in Python.
    window = call.stages[-1].end - call.stages[0].start if call.stages else 0
    return Account(
        wall=call.duration,
        operations=operations,
        between=inside - operations,
        engine=window - inside,
        python=call.duration - window,
    )


def by_kind(call: Call, ceiling: Ceiling) -> list[Row]:
    """A row a kind of operation, in the order of the lanes."""
    order = [kind for kinds in GROUPS.values() for kind in kinds]
    rows = _rows(call.ops, ceiling, lambda op: op.kind)
    return sorted(rows, key=lambda row: order.index(row.name) if row.name in order else len(order))


def by_name(call: Call, ceiling: Ceiling) -> list[Row]:
    """A row a name and shape, summed over layers, cameras and steps; the longest first."""
    rows = _rows(call.ops, ceiling, lambda op: (op.folded, op.shape))
    return sorted(rows, key=lambda row: -row.ns)


def in_all(call: Call, ceiling: Ceiling) -> Row:
    """All operations of a call: what both tables above add up to."""
    return _row("operations", call.ops, ceiling)


@dataclass(frozen=True)
class StageRow:
    """A stage's own row: its operations and what lies between them."""

    operations: Row
    ns: int
    between: int

    def to_json(self, wall: int) -> dict[str, Any]:
        return {
            **self.operations.to_json(wall),
            "ms": self.ns / 1e6,
            "share_of_call": self.ns / wall,
            "between_ms": self.between / 1e6,
        }


def by_stage(call: Call, ceiling: Ceiling) -> list[StageRow]:
    """A row a stage, in order; the steps of the flow together."""
    groups: dict[str, list[Stage]] = {}
    for stage in call.stages:
        name = "flow" if stage.kind == "step" else stage.name
        groups.setdefault(name, []).append(stage)
    rows = []
    for name, stages in groups.items():
        steps = f"flow, {len(stages)} steps" if name == "flow" else name
        ops = [op for stage in stages for op in stage.ops]
        rows.append(
            StageRow(
                operations=_row(steps, ops, ceiling),
                ns=sum(stage.duration for stage in stages),
                between=sum(stage.between for stage in stages),
            )
        )
    return rows


def _rows(ops: Iterable[Op], ceiling: Ceiling, key: Callable[[Op], Any]) -> list[Row]:
    groups: dict[Any, list[Op]] = {}
    for op in ops:
        groups.setdefault(key(op), []).append(op)
    return [
        _row(name if isinstance(name, str) else name[0], group, ceiling)
        for name, group in groups.items()
    ]


def _row(name: str, ops: list[Op], ceiling: Ceiling) -> Row:
    shapes = {op.shape for op in ops}
    return Row(
        name=name,
        calls=len(ops),
        ns=sum(op.duration for op in ops),
        flops=sum(op.flops for op in ops),
        nbytes=sum(op.nbytes for op in ops),
        share=share_of_ceiling(ops, ceiling),
        shape=shapes.pop() if len(shapes) == 1 else "",
    )


def share_of_ceiling(ops: Iterable[Op], ceiling: Ceiling) -> float | None:
    """The time these flops would take at the ceiling, over the time they took.

    Operations without flops count with their time only when there are others with flops: a stage's
    share is of all of its operations' time. None when nothing has flops, or a ceiling is unknown.
    """
    ideal, taken = 0.0, 0
    for op in ops:
        peak = ceiling.of(op.compute)
        if op.flops and not peak:
            return None
        ideal += op.flops / peak if op.flops and peak else 0.0
        taken += op.duration
    return ideal / taken if ideal and taken else None

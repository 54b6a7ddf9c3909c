"""One recorded call: operations in stages, on one clock.

The engine records what a backend was asked to do; the place of an operation in the model is found
here. All times are nanoseconds of CLOCK_MONOTONIC, which C++ and Python share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smolvla_edge.errors import BackendError

# How operations are grouped into lanes and colours, in the order of the lanes.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "linear": ("linear",),
    "attention": ("attention", "attention_mass"),
    "norm": ("layer_norm", "rms_norm"),
    "rope, K and V": ("rope", "store_kv", "scatter_kv"),
    "other": (
        *("letterbox", "patchify", "pixel_shuffle", "gather_rows", "copy", "flow_update"),
        *("block_change", "copy_blocks", "pick_rows", "put_rows", "add", "compare"),
    ),
}
_GROUP_OF = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
# What makes the input of the next linear layer, and what stands between two of one layer.
_AHEAD = frozenset({"layer_norm", "rms_norm", "patchify", "pixel_shuffle"})
_AROUND = frozenset({"rope", "store_kv", "scatter_kv", "attention", "attention_mass"})
_TOWERS = {"vision": "vision.", "prefix": "text.", "flow": "expert."}
# The last operation of a denoising step. A plan that looks ahead (stop, adaptive) updates a copy
# too, and compares it.
_STEP_END, _LOOKED_AHEAD = "flow_update", "compare"


@dataclass(frozen=True)
class Op:
    """One operation. name: of the model's part that it belongs to; shape: in words.

    flops counts a multiply and an add as two and only what reaches the result; nbytes is the least
    that must be moved, each operand once. compute: "float32", "bfloat16" or "int8".
    """

    kind: str
    name: str
    shape: str
    flops: int
    nbytes: int
    compute: str
    start: int
    end: int

    @property
    def group(self) -> str:
        return _GROUP_OF.get(self.kind, "other")

    @property
    def duration(self) -> int:
        return self.end - self.start

    def to_json(self, origin: int) -> dict[str, Any]:
        """Times in milliseconds from `origin`."""
        return {
            "kind": self.kind,
            "name": self.name,
            "shape": self.shape,
            "start_ms": (self.start - origin) / 1e6,
            "ms": self.duration / 1e6,
            "flops": self.flops,
            "bytes": self.nbytes,
            "compute": self.compute,
        }

    @property
    def folded(self) -> str:
        """The name without its layer: what is summed over layers."""
        return re.sub(r"\.layers\.\d+(?=\.| |$)", ".layers.*", self.name)


@dataclass(frozen=True)
class Stage:
    """A part of the call: "preprocess", "vision", "prefix" or "step", which camera or step."""

    kind: str
    index: int
    start: int
    end: int
    ops: tuple[Op, ...]

    @property
    def name(self) -> str:
        if self.kind == "prefix":
            return self.kind
        return f"{self.kind} {self.index}"

    @property
    def duration(self) -> int:
        return self.end - self.start

    @property
    def between(self) -> int:
        """What no operation accounts for."""
        return self.duration - sum(op.duration for op in self.ops)


@dataclass(frozen=True)
class Call:
    """One call from the moment Python was asked to the moment it had the result."""

    start: int
    end: int
    stages: tuple[Stage, ...]

    @property
    def duration(self) -> int:
        return self.end - self.start

    @property
    def ops(self) -> list[Op]:
        return [op for stage in self.stages for op in stage.ops]


def build_call(start: int, end: int, raw: Mapping[str, Any]) -> Call:
    """A call from `Engine.take_records()` and the clock before and after it.

    raw: {"ops": [{kind, weight, rows, in, out, heads, flops, bytes, compute, start, end}],
    "stages": [{kind, index, start, end}], "overwritten": n}. Raises BackendError when records were
    lost, overlap, or lie outside of the call: totals of such records would mean nothing.
    """
    if raw["overwritten"]:
        raise BackendError(
            f"expected every operation of the call, {raw['overwritten']} did not fit the "
            "recording; start_recording() with a larger capacity"
        )
    records = sorted(raw["ops"], key=lambda record: record["start"])
    marks = sorted(raw["stages"], key=lambda mark: mark["start"])
    _check_order("an operation", records, start, end)
    _check_order("a stage", marks, start, end)
    stages: list[Stage] = []
    taken = 0
    for mark in marks:
        inside = [
            record
            for record in records
            if mark["start"] <= record["start"] and record["end"] <= mark["end"]
        ]
        taken += len(inside)
        stages += _stages(mark, inside)
    if taken != len(records):
        raise BackendError(
            f"expected every operation inside a stage, {len(records) - taken} of {len(records)} "
            "are in none"
        )
    return Call(start, end, tuple(stages))


def _check_order(what: str, items: Sequence[Mapping[str, Any]], start: int, end: int) -> None:
    """Each after the one before, all within the call."""
    before = start
    for item in items:
        if not before <= item["start"] <= item["end"] <= end:
            raise BackendError(
                f"expected {what} to begin after the one before it and within the call, got "
                f"{item['start']} to {item['end']} after {before}, the call ends at {end}"
            )
        before = item["end"]


def _stages(mark: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """The stage of a mark; the flow becomes one stage a denoising step."""
    ops = _named(mark["kind"], records)
    if mark["kind"] != "flow":
        return [Stage(mark["kind"], mark["index"], mark["start"], mark["end"], tuple(ops))]
    following = [*(op.kind for op in ops[1:]), ""]
    cuts = [
        i + 1
        for i, (op, after) in enumerate(zip(ops, following, strict=True))
        if op.kind == _STEP_END and after != _LOOKED_AHEAD
    ]
    steps = [ops[a:b] for a, b in zip([0, *cuts[:-1]], cuts, strict=True)] if cuts else [ops]
    starts = [mark["start"], *(step[-1].end for step in steps[:-1])]
    ends = [*starts[1:], mark["end"]]  # the last one also copies the actions out
    return [Stage("step", i, starts[i], ends[i], tuple(step)) for i, step in enumerate(steps)]


def _named(stage: str, records: Sequence[Mapping[str, Any]]) -> list[Op]:
    """Operations with names: a linear layer has its weight's, the others that of a neighbour."""
    weights = [short_weight(record["weight"]) for record in records]
    return [
        Op(
            kind=record["kind"],
            name=weights[i] or f"{_place(stage, record['kind'], weights, i)} {record['kind']}",
            shape=_shape(record),
            flops=record["flops"],
            nbytes=record["bytes"],
            compute=record["compute"],
            start=record["start"],
            end=record["end"],
        )
        for i, record in enumerate(records)
    ]


def _place(stage: str, kind: str, weights: Sequence[str], i: int) -> str:
    """The layer that an operation without a weight belongs to, told by the linear layers around.

    A norm makes the input of the next linear layer. Of attention and what surrounds it, the next is
    of the same layer, or else the last before it of the stage's own tower: the prefix also projects
    keys for the expert in between.
    """
    after = next((name for name in weights[i + 1 :] if name), "")
    if kind in _AHEAD:
        return _layer(after) or after or stage
    if kind in _AROUND:
        for name in (after, *reversed(weights[:i])):
            if name.startswith(_TOWERS.get(stage, "?")) and _layer(name):
                return _layer(name)
    return stage


def _layer(name: str) -> str:
    """ "text.layers.3" of "text.layers.3.attn.q", else nothing."""
    match = re.match(r"\w+\.layers\.\d+", name)
    return match[0] if match else ""


def _shape(record: Mapping[str, Any]) -> str:
    """ "1024 x 768 -> 2304" of a linear layer, "113 x 113, 15 heads of 64" of attention."""
    rows, inner, out = record["rows"], record["in"], record["out"]
    if record["kind"] == "linear":
        # A gated layer computes two matrices of the result's width.
        gated = record["flops"] == 2 * rows * inner * 2 * out > 0
        return f"{rows} x {inner} -> {'2 x ' if gated else ''}{out}"
    if record["kind"] == "attention":
        return f"{rows} x {inner} keys, {record['heads']} heads of {out // record['heads']}"
    return f"{rows} x {out}"


def short_weight(names: str) -> str:
    """ "a.attn.q.weight+a.attn.k.weight" -> "a.attn.q+k": the common part once."""
    parts = [name.removesuffix(".weight") for name in names.split("+")] if names else []
    if len(parts) < 2:
        return parts[0] if parts else ""
    heads = {part.rpartition(".")[0] for part in parts}
    if len(heads) != 1:
        return "+".join(parts)
    return f"{heads.pop()}." + "+".join(part.rpartition(".")[2] for part in parts)

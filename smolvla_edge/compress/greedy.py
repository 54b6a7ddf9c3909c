"""One layer less, and one less again: the list of what to skip, cheapest first.

In each round goes the layer (or the layer in one denoise step) whose absence lets the action error
grow least, beside all that went before. Errors of different layers add up about as independent
noise does, in squares, so growth is counted in squares, and a candidate's growth of an earlier
round is taken for an estimate: those that look cheapest are measured anew until the best of them
beats every estimate that is left (lazy greedy). A candidate that became much cheaper meanwhile can
be missed; `every` measures all of them in every round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from smolvla_edge.compress.evidence import ActionError, Subject
from smolvla_edge.compress.observations import Observations
from smolvla_edge.compress.skip import Progress, base_plan, skippable
from smolvla_edge.config import ModelConfig
from smolvla_edge.errors import PlanError
from smolvla_edge.plan import PARTS, Plan
from smolvla_edge.source import Source

CELLS = "cells"  # the expert's layers in single steps: skip.reuse
CHOICES = (*PARTS, CELLS)


@dataclass(frozen=True)
class Candidate:
    """A layer of a part; with a step, a layer of the expert in that evaluation of the velocity."""

    part: str
    layer: int
    step: int | None = None


@dataclass(frozen=True)
class Point:
    """A point of the curve: what went last (None: nothing yet), the plan without it and all before,
    its action error (rms as a share of the range), its multiply-adds for the first observation, and
    how many candidates were measured to choose it."""

    gone: Candidate | None
    plan: Plan
    action_error: float
    multiply_adds: int
    measured: int

    def to_json(self) -> dict[str, Any]:
        gone = self.gone
        return {
            "part": None if gone is None else gone.part,
            "layer": None if gone is None else gone.layer,
            "step": None if gone is None else gone.step,
            "action_error": self.action_error,
            "multiply_adds": self.multiply_adds,
            "measured": self.measured,
            "skip": self.plan.skip.to_json(),
        }


def greedy(
    source: Source,
    observations: Observations,
    parts: Sequence[str] = PARTS,
    *,
    plan: Plan | None = None,
    count: int | None = None,
    max_error: float | None = None,
    every: bool = False,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Iterator[Point]:
    """The curve, from `plan` as it is (the exact one when not given) to where it ends.

    parts: of CHOICES.  count: at most so many removals.  max_error: none that goes beyond this
    error. Errors are against the exact plan, in float32 arithmetic, over the executed rows;
    observation i draws its noise from seed + i. Raises PlanError for a part or a plan that cannot
    be searched, and what `Subject.chunks` raises.
    """
    plan = _beginning(source, plan)
    left = _candidates(source.model, plan, parts)
    seen = observations.first(len(observations))
    subject = Subject(source, plan=base_plan(source), compute="float32", threads=threads)
    exact = subject.chunks(seen, seed, lambda done, total: progress("the exact plan", done, total))
    first = next(iter(seen))

    def error_of(plan: Plan) -> float:
        return ActionError.between(subject.under(plan).chunks(seen, seed), exact).rms_of_range

    def point(gone: Candidate | None, plan: Plan, error: float, measured: int) -> Point:
        work = subject.under(plan).multiply_adds(first, seed)
        return Point(gone, plan, error, work, measured)

    error, rounds = error_of(plan), 0
    yield point(None, plan, error, 0)
    growth = dict.fromkeys(left, float("-inf"))  # of the squared error; -inf: never measured
    while growth and (count is None or rounds < count):
        rounds += 1
        fresh: dict[Candidate, float] = {}
        for candidate in sorted(growth, key=growth.__getitem__):
            if fresh and not every and min(fresh.values()) ** 2 - error**2 <= growth[candidate]:
                break
            progress(f"removal {rounds}", len(fresh), len(growth))
            fresh[candidate] = error_of(without(plan, candidate))
        progress(f"removal {rounds}", len(growth), len(growth))
        growth |= {candidate: found**2 - error**2 for candidate, found in fresh.items()}
        chosen = min(fresh, key=fresh.__getitem__)
        error = fresh[chosen]
        if max_error is not None and error > max_error:
            return
        plan = without(plan, chosen)
        yield point(chosen, plan, error, len(fresh))
        del growth[chosen]
        if chosen.part == "expert":  # what never runs has no steps to leave out
            growth = {c: g for c, g in growth.items() if c.part != CELLS or c.layer != chosen.layer}


def without(plan: Plan, candidate: Candidate) -> Plan:
    """The plan with one more layer, or layer in a step, left out."""
    skip, layer = plan.skip, candidate.layer
    if candidate.step is not None:
        reuse = skip.reuse or ((),) * plan.steps
        longer = tuple(sorted({*reuse[candidate.step], layer}))
        cells = (*reuse[: candidate.step], longer, *reuse[candidate.step + 1 :])
        return replace(plan, skip=replace(skip, reuse=cells))
    changed: dict[str, Any] = {
        candidate.part: tuple(sorted({*getattr(skip, candidate.part), layer}))
    }
    if candidate.part == "expert":
        kept = tuple(tuple(x for x in layers if x != layer) for layers in skip.reuse)
        changed["reuse"] = kept if any(kept) else ()
    return replace(plan, skip=replace(skip, **changed))


def _beginning(source: Source, plan: Plan | None) -> Plan:
    exact = base_plan(source)
    return exact if plan is None else replace(plan, horizon=exact.horizon)


def _candidates(model: ModelConfig, plan: Plan, parts: Sequence[str]) -> list[Candidate]:
    unknown = [part for part in parts if part not in CHOICES]
    if unknown or not parts:
        raise PlanError(f"parts: expected some of {', '.join(CHOICES)}, got {list(parts)}")
    found = [
        Candidate(part, layer)
        for part in PARTS
        if part in parts
        for layer in skippable(model, part)
        if layer not in getattr(plan.skip, part)
    ]
    if CELLS in parts:
        reuse = plan.skip.reuse or ((),) * plan.steps
        found += [
            Candidate(CELLS, layer, step)
            for step in range(1, plan.steps)  # nothing ran before the first
            for layer in skippable(model, "expert")
            if layer not in plan.skip.expert and layer not in reuse[step]
        ]
    return found

"""Weights that were trained to do without some layers, and are wrong with them (compress/heal.py).

What was skipped stands in a bundle's provenance. A policy of such weights refuses every plan that
computes one of those layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smolvla_edge.errors import BundleError, PlanError
from smolvla_edge.plan import PARTS, Plan, Skip
from smolvla_edge.plan_words import write_words

if TYPE_CHECKING:
    from smolvla_edge.source import Source

NOTE = "healed"  # in the provenance


def healed_plan(provenance: Mapping[str, Any]) -> Plan | None:
    """The plan that a bundle of this provenance was healed for; None where nothing was.

    Raises BundleError for a note that cannot be read.
    """
    note = provenance.get(NOTE)
    if note is None:
        return None
    try:
        return Plan.from_json(note["plan"])
    except (PlanError, TypeError, KeyError) as cause:
        raise BundleError(
            f"provenance: {NOTE}: expected an object with the plan that these weights were healed "
            f"for, got {note!r:.80}"
        ) from cause


def healed_for(provenance: Mapping[str, Any], num_steps: int) -> str | None:
    """That plan in words."""
    plan = healed_plan(provenance)
    return None if plan is None else write_words(plan, num_steps)


def note_of(source: Source) -> dict[str, Any]:
    """What a bundle made of this source has to keep: {} or {NOTE: ...}."""
    kept = {} if source.bundle is None else source.bundle.provenance
    return {NOTE: kept[NOTE]} if kept.get(NOTE) is not None else {}


def least_plan(source: Source) -> Plan:
    """The exact plan, but for the layers that these weights do without."""
    return replace(Plan.exact(source.model.num_steps), skip=_without(source))


def check_healed(plan: Plan, source: Source) -> None:
    """Raises PlanError for a plan that computes a layer which these weights do without."""
    healed = _without(source)
    computed = [
        f"{part} {layer}"
        for part in PARTS
        for layer in getattr(healed, part)
        if layer not in getattr(plan.skip, part)
    ]
    if computed:
        steps = source.model.num_steps
        words = write_words(Plan(steps=steps, skip=healed), steps)
        raise PlanError(
            f"these weights were healed to do without {', '.join(computed)}: expected a plan with "
            f"{words}, got {write_words(plan, steps)}. Beside layers that have learnt to stand in "
            "for them they would make the actions wrong"
        )


def _without(source: Source) -> Skip:
    plan = healed_plan(note_of(source))
    return Skip() if plan is None else replace(plan.skip, reuse=())

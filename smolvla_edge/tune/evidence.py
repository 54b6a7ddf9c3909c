"""What a preset that was found says about itself, beside the bundle; and the whole as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smolvla_edge.doctor.cpu import read_cpu
from smolvla_edge.doctor.device import device_name
from smolvla_edge.doctor.gpu import read_gpu
from smolvla_edge.doctor.process import run
from smolvla_edge.doctor.tree import Tree
from smolvla_edge.tune.finalists import Finalist
from smolvla_edge.tune.front import measured_front
from smolvla_edge.tune.tuning import Tuned
from smolvla_edge.version import __version__


def preset_evidence(
    found: Tuned, finalist: Finalist, closed_loop: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Of the chosen plan; JSON-able. Times are of the CPU, whatever else the machine has."""
    exact, tree = found.finalists[0], Tree()
    return {
        "smolvla_edge": __version__,
        "machine": dict(found.ran),
        "device": device_name(read_cpu(tree), read_gpu(tree, run)),
        "plan": finalist.plan.to_json(),
        "reference": {
            "name": found.reference.provenance["source"],
            "bundle": found.reference.provenance["bundle"],
            "compute": "float32",
        },
        "observations": found.streams.evidence(),
        "seed": found.request.seed,
        "trials": sum(map(len, found.trials)),
        "budget": found.request.budget.describe(),
        "executed": found.rows,
        "action_error": finalist.held_out.to_json(),
        "action_error_on_search": found.error.to_json(),
        "latency_ms": {
            **vars(finalist.latency),
            "exact": {
                "bundle": found.sources[0].provenance["bundle"],
                **vars(exact.latency),
            },
        },
        "speedup": finalist.speedup,
        "closed_loop": None if closed_loop is None else dict(closed_loop),
    }


def result_json(found: Tuned) -> dict[str, Any]:
    """Everything but what was played and written; JSON-able."""
    front = set(measured_front(found.finalists))
    influence = found.influence
    return {
        "bundles": [
            {"path": path, "bundle": source.provenance["bundle"]}
            for path, source in zip(found.request.bundles, found.sources, strict=True)
        ],
        "reference": found.reference.provenance["source"],
        "frames": found.streams.evidence(),
        "executed": found.rows,
        "seed": found.request.seed,
        "space": found.space.to_json(),
        "influence": None if influence is None else influence.to_json(),
        "trials": [
            [
                {"number": t.number, "plan": t.plan.to_json(), "error": t.error, "work": t.work}
                for t in mine
            ]
            for mine in found.trials
        ],
        "machine": dict(found.ran),
        "finalists": [
            {
                "bundle": one.candidate.source,
                "plan": one.plan.to_json(),
                "words": found.words(one),
                "searched": {"error": one.candidate.error, "work": one.candidate.work},
                "action_error": one.held_out.to_json(),
                "latency_ms": vars(one.latency),
                "speedup": one.speedup,
                "on_front": number in front,
            }
            for number, one in enumerate(found.finalists)
        ],
        "budget": found.request.budget.describe(),
        "chosen": found.choice.number if found.choice.fits else None,
        "nearest": found.choice.number,
        "action_error_on_search": found.error.to_json(),
    }

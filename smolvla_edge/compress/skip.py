"""Which layers matter: each left out alone, and what that does to the actions.

Two numbers for a layer. The action error is what counts: actions without it against actions with
it, from the same noise. Block influence is ShortGPT's (Men et al. 2024), one less the cosine of
what goes in and what comes out; it costs one traced call and knows nothing of actions, so it only
decides between equals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.compress.evidence import ActionError, Subject, Trace
from smolvla_edge.compress.observations import Observations
from smolvla_edge.config import ModelConfig
from smolvla_edge.errors import PlanError
from smolvla_edge.healed import least_plan, note_of
from smolvla_edge.plan import PARTS, Plan, Skip
from smolvla_edge.source import Source

Progress = Callable[[str, int, int], None]
_UNREAD = "nothing reads it after its keys and values: leaving it out changes no action"


@dataclass(frozen=True)
class LayerInfluence:
    """block_influence: mean over rows, of the expert's in the first evaluation of the velocity.
    action_error: rms of the executed rows' difference as a share of the actions' range."""

    part: str
    layer: int
    block_influence: float
    action_error: float


@dataclass(frozen=True)
class LeftOut:
    """A layer that was not measured, and why."""

    part: str
    layer: int
    why: str


@dataclass(frozen=True)
class Influence:
    """Every layer of "vision", "vlm" and "expert" that may be skipped, in the model's order.

    notes: what the numbers rest on.
    """

    parts: Mapping[str, tuple[LayerInfluence, ...]]
    left_out: tuple[LeftOut, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    def order(self, part: str) -> tuple[int, ...]:
        """Layers of a part, those first that change actions least."""
        ranked = sorted(
            self.parts[part], key=lambda item: (item.action_error, item.block_influence, item.layer)
        )
        return tuple(item.layer for item in ranked)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.notes,
            "parts": {
                part: [
                    {
                        "layer": item.layer,
                        "block_influence": item.block_influence,
                        "action_error": item.action_error,
                    }
                    for item in layers
                ]
                for part, layers in self.parts.items()
            },
            "left_out": [
                {"part": item.part, "layer": item.layer, "why": item.why} for item in self.left_out
            ],
        }


def rank_layers(
    source: Source,
    observations: Observations,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Influence:
    """Leave out each layer alone, under an otherwise exact plan, in float32 arithmetic.

    A bundle of codes keeps its products of integers. Observation i draws its noise from seed + i.
    Raises PlanError for healed weights, and what `Subject.chunks` raises.
    """
    if note_of(source):
        raise PlanError(
            "expected weights that compute all their layers, got healed ones: rank the layers of "
            "the bundle that they were made from"
        )
    seen = observations.first(len(observations))  # read once, gone through for every layer
    subject = Subject(source, plan=base_plan(source), compute="float32", threads=threads)
    exact = subject.chunks(seen, seed, lambda done, total: progress("all layers", done, total))
    blocks = _block_influence(subject, seen, seed, progress)
    layers = {part: skippable(source.model, part) for part in PARTS}
    total, done = sum(map(len, layers.values())), 0
    parts: dict[str, tuple[LayerInfluence, ...]] = {}
    for part in PARTS:
        found = []
        for layer in layers[part]:
            progress("each layer alone", done, total)
            only: dict[str, Any] = {part: (layer,)}
            plan = replace(subject.policy.plan, skip=Skip(**only))
            error = ActionError.between(subject.under(plan).chunks(seen, seed), exact)
            found.append(
                LayerInfluence(part, layer, float(blocks[part][layer]), error.rms_of_range)
            )
            done += 1
        parts[part] = tuple(found)
    progress("each layer alone", done, total)
    notes = {
        "plan": subject.policy.plan.to_json(),
        "observations": seen.evidence(),
        "seed": seed,
    }
    left_out = tuple(
        LeftOut("vlm", layer, _UNREAD)
        for layer in range(source.model.text_layers)
        if layer not in layers["vlm"]
    )
    return Influence(parts, left_out, notes)


def base_plan(source: Source) -> Plan:
    """The exact plan (of healed weights, what they do without), as far as the rows that are
    executed: the others cannot change them."""
    return replace(least_plan(source), horizon=source.contract.n_action_steps)


def skippable(model: ModelConfig, part: str) -> range:
    """The layers of a part whose absence can change an action."""
    counts = {
        "vision": model.vision_layers,
        "vlm": model.last_used_text_layer,
        "expert": model.expert_layers,
    }
    return range(counts[part])


def _block_influence(
    subject: Subject, seen: Observations, seed: int, progress: Progress
) -> dict[str, NDArray[np.float64]]:
    """{part: one number a layer}."""
    model = subject.source.model
    sums = {part: np.zeros(len(skippable(model, part))) for part in PARTS}
    for number, observation in enumerate(seen):
        progress("what layers change", number, len(seen))
        trace = subject.trace(observation, seed + number)
        for part in PARTS:
            streams = list(_streams(model, trace, part))
            for states in streams:
                alike = [_cosine(x, y) for x, y in pairwise(states)]
                sums[part] += (1 - np.array(alike)) / len(streams)
    progress("what layers change", len(seen), len(seen))
    return {part: total / len(seen) for part, total in sums.items()}


def _streams(model: ModelConfig, trace: Trace, part: str) -> Iterator[list[NDArray[np.float32]]]:
    """The states before, between and after a part's skippable layers: for vision once a camera."""
    layers = skippable(model, part)
    if part == "vision":
        for camera in range(model.max_cameras):
            if f"mid.vision_embed.{camera}" in trace:
                names = [f"mid.vision_layer{i}.{camera}" for i in layers]
                yield [trace[name] for name in (f"mid.vision_embed.{camera}", *names)]
    elif part == "vlm":
        yield [trace[n] for n in ("out.prefix_embs", *(f"mid.prefix_layer{i}" for i in layers))]
    else:
        beside = [i * model.expert_layer_stride for i in layers]  # the engine names them so
        names = [f"mid.step0.expert_layer{i}" for i in beside]
        yield [trace[name] for name in ("mid.suffix_embs.step0", *names)]


def _cosine(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """The mean over rows of the cosine between a row of x and the same of y."""
    a, b = (z.reshape(-1, z.shape[-1]).astype(np.float64) for z in (x, y))
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / np.maximum(sizes, np.finfo(np.float64).tiny)).mean())

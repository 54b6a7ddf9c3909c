"""A policy in one episode of the simulator, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.chunk import ActionChunk
from smolvla_edge.errors import SimulatorError
from smolvla_edge.eval.metaworld import CAMERA, STEP_LIMIT, Metaworld
from smolvla_edge.eval.sides import GREY
from smolvla_edge.policy import Policy

Watch = Callable[[NDArray[np.float32], ActionChunk, int], None]
"""Called before every step with the state, the chunk, and the row that comes next."""


@dataclass(frozen=True)
class EpisodeResult:
    """What happened, JSON-able.

    `steps` is the step in which the task was solved, or the limit. Jumps are mean distances between
    successive actions in the units of the action: where a chunk follows another (the seam), and
    inside chunks; None where no action follows another so. dirty: of each chunk, the part of the
    pictures' tokens that were computed (the mean over cached cameras); empty without a cache.
    """

    task: str
    seed: int
    success: bool
    steps: int
    chunks: int
    seam_jump: float | None
    inner_jump: float | None
    latency_ms: tuple[float, ...]  # of each chunk
    evaluations: tuple[int, ...] = ()  # of the velocity, in each chunk
    dirty: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(raw: Any) -> EpisodeResult:
        try:
            lists = ("latency_ms", *(raw.keys() & {"evaluations", "dirty"}))
            return EpisodeResult(**{**raw, **{name: tuple(raw[name]) for name in lists}})
        except (AttributeError, TypeError, KeyError) as cause:
            raise SimulatorError(f"expected the record of an episode, got {raw!r:.200}") from cause


def run_episode(
    policy: Policy,
    world: Metaworld,
    seed: int,
    n_action_steps: int,
    *,
    instruction: str | None = None,
    blank: bool = False,
    step_limit: int = STEP_LIMIT,
    watch: Watch | None = None,
) -> EpisodeResult:
    """Play one episode; the noise of its chunks follows from `seed` as the layout does.

    Pictures are drawn when a chunk is computed. The episode ends at the first solved step or at the
    limit.
    """
    task = instruction or world.task.instruction
    world.reset(seed)
    policy.reset(seed=seed)
    jumps: dict[bool, list[float]] = {True: [], False: []}
    chunks: list[ActionChunk] = []
    chunk: ActionChunk | None = None
    before: NDArray[np.float32] | None = None
    row = n_action_steps
    warm = policy.plan.warm_start is not None  # `step` hands over its rest by itself, `predict` not
    for step in range(step_limit):
        seam = chunk is None or row == n_action_steps
        if seam or chunk is None:
            seen = world.picture()
            if blank:
                seen = np.full_like(seen, GREY)
            rest = None if chunk is None or not warm else chunk.normalized[n_action_steps:]
            chunk = policy.predict({CAMERA: seen}, world.state, task, prev_chunk_left_over=rest)
            row = 0
            chunks.append(chunk)
        if watch:
            watch(world.state, chunk, row)
        action = np.clip(chunk.actions[row], -1.0, 1.0)
        if before is not None:
            jumps[seam].append(float(np.linalg.norm(action - before)))
        before = action
        row += 1
        if world.step(action):
            return _result(world, seed, True, step + 1, jumps, chunks)
    return _result(world, seed, False, step_limit, jumps, chunks)


def _result(
    world: Metaworld,
    seed: int,
    success: bool,
    steps: int,
    jumps: dict[bool, list[float]],
    chunks: list[ActionChunk],
) -> EpisodeResult:
    seam, inner = (
        round(float(np.mean(jumps[kind])), 5) if jumps[kind] else None for kind in (True, False)
    )
    return EpisodeResult(
        task=world.task.name,
        seed=seed,
        success=success,
        steps=steps,
        chunks=len(chunks),
        seam_jump=seam,
        inner_jump=inner,
        latency_ms=tuple(round(chunk.timings["total"], 2) for chunk in chunks),
        evaluations=tuple(chunk.provenance["evaluations"] for chunk in chunks),
        dirty=tuple(round(_dirty(chunk), 4) for chunk in chunks if chunk.provenance.get("cache")),
    )


def _dirty(chunk: ActionChunk) -> float:
    cameras = chunk.provenance["cache"].values()
    return float(np.mean([camera["dirty"] for camera in cameras]))

"""What a setting costs in actions: measured, and kept beside the bundle that it was measured on.

The reference is a policy in float32 arithmetic with the exact plan. It and the candidate see the
same observations with the same noise, so that the difference of their chunks is the candidate's
doing alone.

A range is the reference's own: largest less smallest value of an action over all chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.backends.native import NativeBackend, load_core
from smolvla_edge.compress.observations import Observation, Observations
from smolvla_edge.errors import BackendError, InputError
from smolvla_edge.healed import least_plan
from smolvla_edge.noise import normal
from smolvla_edge.plan import Plan
from smolvla_edge.policy import Policy
from smolvla_edge.preprocess import normalize
from smolvla_edge.source import Source
from smolvla_edge.tokenizer import TaskTokenizer
from smolvla_edge.version import __version__

Progress = Callable[[int, int], None]
Trace = Mapping[str, NDArray[np.float32]]

# Stages whose signal-to-noise ratio is told, and the traced tensors that make each of them.
STAGES = {
    "vision": "out.vision.",
    "image tokens": "out.connector.",
    "keys and values": "out.kv.",
    "first velocity": "out.v_t.step0",
}
_STEP = "out.x_t.after_step"
_MOST_OPERATIONS = 1 << 18  # SmolVLA's ten steps are about 2000


class Subject:
    """A policy that is measured, on the native engine's CPU kernels.

    plan: the exact one (of healed weights, what they do without) when not given.  compute: the
    arithmetic in place of the source's own.
    Observations follow no others: nothing is kept from one to the next. Raises what loading raises,
    PlanError for a plan that does not fit.
    """

    def __init__(
        self,
        source: Source,
        *,
        plan: Plan | None = None,
        compute: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.source = source
        self._engine = NativeBackend(
            source.model, source.tensors, source.contract,
            threads=threads, compute=compute or source.compute,
        )  # fmt: skip
        self._use(plan or least_plan(source))

    def under(self, plan: Plan) -> Subject:
        """The same policy under another plan, on the same engine. Raises PlanError."""
        other = copy(self)
        other._use(plan)
        return other

    def _use(self, plan: Plan) -> None:
        self.policy = Policy(self.source, self._engine, plan)

    def chunks(
        self, observations: Observations, seed: int, progress: Progress = lambda done, total: None
    ) -> NDArray[np.float32]:
        """Actions [n, rows, action_dim] in robot units, observation i from the noise of seed + i.

        Raises what `Policy.predict` raises: InputError and NonFiniteError among them.
        """
        found = []
        for number, seen in enumerate(observations):
            progress(number, len(observations))
            self.policy.reset()
            chunk = self.policy.predict(seen.images, seen.state, seen.task, seed=seed + number)
            found.append(chunk.actions)
        progress(len(found), len(observations))
        return np.stack(found)

    def traces(self, observations: Sequence[Observation], seed: int) -> list[Trace]:
        """The traced tensors of STAGES and of every denoise step, for each observation."""
        kept = (*STAGES.values(), _STEP)
        found: list[Trace] = []
        for number, seen in enumerate(observations):
            traced = self.trace(seen, seed + number)
            found.append({name: value for name, value in traced.items() if name.startswith(kept)})
        return found

    def trace(self, seen: Observation, seed: int) -> Trace:
        """Every tensor that the engine traces. Raises PlanError for a plan with a cache."""
        model, contract = self.source.model, self.source.contract
        frames = [frame for _, frame in contract.select_frames(seen.images)]
        present = np.array([frame is not None for frame in frames])
        shape = next(self._pixels(frame).shape for frame in frames if frame is not None)
        pixels = np.full((len(frames), *shape), -1.0, np.float32)
        for place, frame in enumerate(frames):
            if frame is not None:
                pixels[place] = self._pixels(frame)
        if self.source.tokenizer_file is None:
            raise self.source.no_tokenizer
        rules = contract.tokenizer
        tokens = TaskTokenizer(self.source.tokenizer_file, rules, model.vocab).encode(seen.task).ids
        state = np.zeros(model.max_state_dim, np.float32)
        state[: model.state_dim] = normalize(seen.state, contract.state)
        noise = normal(seed, model.chunk_size, model.max_action_dim)
        return self._engine.trace(
            pixels, present, tokens, np.ones(len(tokens), bool), state, noise, self.policy.plan
        )

    def multiply_adds(self, seen: Observation, seed: int) -> int:
        """Of one prediction, as the engine counts them: linear layers and attention."""
        self.policy.reset()
        self._engine.start_recording(_MOST_OPERATIONS)
        try:
            self.policy.predict(seen.images, seen.state, seen.task, seed=seed)
        finally:
            raw = self._engine.take_records()
        if raw["overwritten"]:
            raise BackendError(
                f"expected at most {_MOST_OPERATIONS} operations in a prediction, got "
                f"{raw['overwritten']} more; use a plan of fewer steps"
            )
        return sum(int(op["flops"]) for op in raw["ops"]) // 2

    def _pixels(self, frame: NDArray[np.generic]) -> NDArray[np.float32]:
        """float32 [3, H, W] in [-1, 1]."""
        resize = self.source.model.resize
        if resize is not None:
            letterboxed: NDArray[np.float32] = load_core().letterbox(frame, *resize)
            return letterboxed
        values = frame.astype(np.float32)
        values = values / np.float32(255) if frame.dtype == np.uint8 else values
        return np.ascontiguousarray(values.transpose(2, 0, 1) * np.float32(2) - np.float32(1))


@dataclass(frozen=True)
class ActionError:
    """Of each action [d], over observations and rows: mean, 95th percentile and largest
    |difference| and the range it belongs to, robot units; rms_of_range: the root of the mean of
    all squared differences, each over its range."""

    mean: NDArray[np.float64]
    p95: NDArray[np.float64]
    largest: NDArray[np.float64]
    range: NDArray[np.float64]
    rms_of_range: float

    @staticmethod
    def between(got: NDArray[np.float32], exact: NDArray[np.float32]) -> ActionError:
        """Of chunks [n, rows, d] against the reference's."""
        error = np.abs(got.astype(np.float64) - exact).reshape(-1, exact.shape[2])
        spread = np.ptp(exact.astype(np.float64).reshape(-1, exact.shape[2]), axis=0)
        moving = spread > 0  # an action that never changes has no range
        share = error[:, moving] / spread[moving]
        return ActionError(
            mean=error.mean(axis=0),
            p95=np.percentile(error, 95, axis=0),
            largest=error.max(axis=0),
            range=spread,
            rms_of_range=float(np.sqrt((share**2).mean())) if moving.any() else 0.0,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": self.mean.tolist(),
            "p95": self.p95.tolist(),
            "max": self.largest.tolist(),
            "range": self.range.tolist(),
            "rms_of_range": self.rms_of_range,
        }


def measure(
    candidate: Source,
    reference: Source,
    observations: Observations,
    *,
    seed: int = 0,
    traced: int = 16,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """The evidence, JSON-able: the candidate as it runs against the reference in float32.

    Where the reference stores bfloat16, what it loses as it runs stands beside it ("reference's own
    bfloat16"): the candidate cannot be expected to do better. Stages are traced for the first
    `traced` observations. One policy is in memory at a time. Raises InputError when the two do not
    take the same observations.
    """
    check_alike(candidate, reference)
    few = list(islice(iter(observations), traced))

    def run(what: str, source: Source, compute: str | None) -> tuple[Subject, Any]:
        subject = Subject(source, compute=compute, threads=threads)
        return subject, subject.chunks(observations, seed, partial(progress, what))

    subject, exact = run("reference, float32", reference, "float32")
    exact_traces = subject.traces(few, seed)
    own = None
    if reference.compute != "float32":
        subject, rounded = run(f"reference, {reference.compute}", reference, None)
        own = ActionError.between(rounded, exact)
    subject, got = run("candidate", candidate, None)
    traces, ran = subject.traces(few, seed), subject.policy.provenance
    return {
        "smolvla_edge": __version__,
        "machine": {name: ran.get(name) for name in ("backend", "isa", "threads")},
        "device": None,  # of times; an error is the same on every device
        "plan": ran["plan"],
        "reference": {"name": reference.provenance["source"],
                      "bundle": reference.provenance["bundle"], "compute": "float32"},
        "observations": {
            **observations.evidence(),
            "fitted_to_it": _calibration(candidate) == (observations.kind, observations.name),
        },
        "seed": seed,
        "action_error": ActionError.between(got, exact).to_json(),
        "reference_as_it_runs": None if own is None else own.to_json(),
        "traced": len(few),
        "signal_to_noise_db": signal_to_noise(traces, exact_traces),
        "closed_loop": None,
    }  # fmt: skip


def check_alike(candidate: Source, reference: Source) -> None:
    pairs = {
        "actions": (candidate.contract.action_dim, reference.contract.action_dim),
        "rows in a chunk": (candidate.model.chunk_size, reference.model.chunk_size),
        "denoise steps": (candidate.model.num_steps, reference.model.num_steps),
        "pixels": (candidate.model.resize, reference.model.resize),
        "cameras": (list(candidate.contract.cameras), list(reference.contract.cameras)),
        "numbers of state": (candidate.contract.state_dim, reference.contract.state_dim),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise InputError(f"expected policies with the same {what}, got {ours} and {theirs}")


def _calibration(source: Source) -> tuple[Any, Any] | None:
    """The kind and name of the observations that its weights were fitted to, if any."""
    quantized = {} if source.bundle is None else source.bundle.provenance.get("quantized")
    found = quantized.get("calibration") if isinstance(quantized, Mapping) else None
    return (found.get("kind"), found.get("name")) if isinstance(found, Mapping) else None


def signal_to_noise(traces: Sequence[Trace], exact: Sequence[Trace]) -> dict[str, Any]:
    """Decibels of signal over quantisation noise at each stage, and at each denoise step of x.

    None where nothing differs.
    """
    steps = sum(name.startswith(_STEP) for name in exact[0])
    names = [[f"{_STEP}{step}"] for step in range(steps)]
    return {
        "stages": {
            stage: _decibels(traces, exact, [n for n in exact[0] if n.startswith(prefix)])
            for stage, prefix in STAGES.items()
        },
        "denoise_steps": [_decibels(traces, exact, name) for name in names],
    }


def _decibels(traces: Sequence[Trace], exact: Sequence[Trace], names: list[str]) -> float | None:
    signal = noise = 0.0
    for got, want in zip(traces, exact, strict=True):
        for name in names:
            signal += float((want[name].astype(np.float64) ** 2).sum())
            noise += float(((got[name].astype(np.float64) - want[name]) ** 2).sum())
    return None if noise == 0 or signal == 0 else 10 * math.log10(signal / noise)

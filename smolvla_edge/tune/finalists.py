"""The few plans that are measured: their time on this machine, their error on held-out streams."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from smolvla_edge.backends import Backend, open_backend
from smolvla_edge.compress.evidence import ActionError
from smolvla_edge.packed_cache import open_with_cache
from smolvla_edge.plan import Plan
from smolvla_edge.policy import Policy
from smolvla_edge.source import Source
from smolvla_edge.tune.streams import Stream

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Candidate:
    """A plan to be measured. source: a number among the bundles. error, work: what the search saw;
    None for a plan that it did not try."""

    source: int
    plan: Plan
    error: float | None = None
    work: float | None = None


@dataclass(frozen=True)
class Latency:
    """Of `calls` calls of Policy.predict, milliseconds."""

    median_ms: float
    p90_ms: float
    calls: int

    @staticmethod
    def of(seconds: Sequence[float]) -> Latency:
        median, p90 = np.percentile(np.array(seconds) * 1e3, (50, 90))
        return Latency(round(float(median), 3), round(float(p90), 3), len(seconds))


@dataclass(frozen=True)
class Finalist:
    """A measured plan. speedup: against the exact plan of the first bundle, median over median, in
    the same run."""

    candidate: Candidate
    held_out: ActionError
    latency: Latency
    speedup: float

    @property
    def plan(self) -> Plan:
        return self.candidate.plan


def time_all(
    sources: Sequence[Source],
    candidates: Sequence[Candidate],
    streams: Sequence[Stream],
    calls: int,
    seed: int,
    *,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[list[Latency], dict[str, Any]]:
    """Latencies of `calls` calls or more of each candidate, one call of each in turn over the
    frames of whole streams; and what ran ("backend", "isa", "threads").

    What else the machine does meets all of them alike. Each turn begins with another candidate.
    """
    with tempfile.TemporaryDirectory(prefix="smolvla-edge-") as folder:
        policies = _policies(sources, candidates, Path(folder), threads)
        took: list[list[float]] = [[] for _ in candidates]
        first = streams[0].frames[0]
        for policy in policies:  # pages and caches warm up outside the numbers
            policy.predict(first.images, first.state, first.task, seed=seed)
        turns = 0
        for stream in cycle(streams):
            if turns >= calls:
                break
            for policy in policies:
                policy.reset()
            for number, seen in enumerate(stream.frames, stream.first):
                for i in range(len(policies)):
                    one = (i + turns) % len(policies)
                    begun = time.perf_counter()
                    policies[one].predict(seen.images, seen.state, seen.task, seed=seed + number)
                    took[one].append(time.perf_counter() - begun)
                turns += 1
                progress(min(turns, calls), calls)
        ran = {name: policies[0].provenance.get(name) for name in ("backend", "isa", "threads")}
    return [Latency.of(seconds) for seconds in took], ran


def _policies(
    sources: Sequence[Source], candidates: Sequence[Candidate], folder: Path, threads: int | None
) -> list[Policy]:
    """One engine a bundle, and one more for every plan with a cache: an engine keeps the frames of
    one. Engines of one bundle share its packed weights, mapped from a file."""
    shared: dict[int, Backend] = {}
    found = []
    for one in candidates:
        source = sources[one.source]
        keeps_frames = one.plan.cache is not None
        if keeps_frames or one.source not in shared:
            engine = _engine(source, folder / f"{one.source}.packed", threads)
            if not keeps_frames:
                shared[one.source] = engine
        else:
            engine = shared[one.source]
        found.append(Policy(source, engine, one.plan))
    return found


def _engine(source: Source, packed: Path, threads: int | None) -> Backend:
    def build(image: Any = None) -> Any:
        return open_backend(
            source.model, source.tensors, source.contract,
            device="cpu", threads=threads, compute=source.compute, packed=image,
        )  # fmt: skip

    if source.bundle is None:
        engine: Backend = build()
        return engine
    return open_with_cache(source, build, packed, threads)[0]

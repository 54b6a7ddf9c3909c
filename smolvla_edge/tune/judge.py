"""One plan over the streams: how far its actions are from the exact ones, and what it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.backends import Backend, open_backend
from smolvla_edge.chunk import ActionChunk
from smolvla_edge.compress.evidence import ActionError
from smolvla_edge.compress.observations import Observation
from smolvla_edge.plan import Plan
from smolvla_edge.policy import Policy
from smolvla_edge.source import Source
from smolvla_edge.tokenizer import TaskTokenizer
from smolvla_edge.tune.streams import Stream
from smolvla_edge.tune.work import Work, call_work

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Verdict:
    """error: of the executed actions.  work: mean multiply-adds of a call."""

    error: ActionError
    work: Work


class Runner:
    """A bundle's engine, on which plans are tried one after the other."""

    def __init__(
        self, source: Source, *, compute: str | None = None, threads: int | None = None
    ) -> None:
        self.source = source
        self._words: dict[str, int] = {}
        self.engine: Backend = open_backend(
            source.model, source.tensors, source.contract,
            device="cpu", threads=threads, compute=compute or source.compute,
        )  # fmt: skip

    def run(
        self,
        plan: Plan,
        streams: Sequence[Stream],
        seed: int,
        rows: int,
        progress: Progress = lambda done, total: None,
    ) -> tuple[NDArray[np.float32], Work]:
        """The first `rows` actions of every chunk [n, rows, d], robot units, and the mean work of a
        call. Frame i of all streams has the noise of seed + i under every plan."""
        policy = Policy(self.source, self.engine, plan)
        total = sum(map(len, streams))
        actions, work = [], Work()
        for stream in streams:
            policy.reset()
            for number, seen in enumerate(stream.frames, stream.first):
                chunk = policy.predict(seen.images, seen.state, seen.task, seed=seed + number)
                actions.append(chunk.actions[:rows])
                work += self._work(plan, seen, chunk)
                progress(len(actions), total)
        policy.reset()
        mean = Work(work.vision / total, work.prefix / total, work.flow / total)
        return np.stack(actions), mean

    def _work(self, plan: Plan, seen: Observation, chunk: ActionChunk) -> Work:
        reports: dict[str, Any] = chunk.provenance.get("cache", {})
        patches = []
        for name, frame in self.source.contract.select_frames(seen.images):
            if frame is not None:
                part = reports[name]["dirty"] if name in reports else 1.0
                patches.append((self._patches(frame), part))
        return call_work(
            self.source.model,
            plan,
            patches=patches,
            words=self._count(seen.task),
            evaluations=chunk.provenance["evaluations"],
        )

    def _patches(self, frame: NDArray[Any]) -> int:
        model = self.source.model
        width, height = model.resize or (frame.shape[1], frame.shape[0])
        return (width // model.patch_size) * (height // model.patch_size)

    def _count(self, task: str) -> int:
        """Tokens of an instruction."""
        if task not in self._words:
            source = self.source
            if source.tokenizer_file is None:
                raise source.no_tokenizer
            encoder = TaskTokenizer(
                source.tokenizer_file, source.contract.tokenizer, source.model.vocab
            )
            self._words[task] = len(encoder.encode(task).ids)
        return self._words[task]


def exact_actions(
    reference: Source,
    streams: Sequence[Stream],
    seed: int,
    rows: int,
    *,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> NDArray[np.float32]:
    """What plans are held to: the reference in float32 arithmetic under the exact plan, [n, rows,
    d]. (Rows beyond those that are executed are not computed: they change nothing before them.)"""
    plan = replace(Plan.exact(reference.model.num_steps), horizon=rows)
    runner = Runner(reference, compute="float32", threads=threads)
    return runner.run(plan, streams, seed, rows, progress)[0]


class Judge:
    """Plans of one bundle against the exact actions of the same streams."""

    def __init__(
        self,
        runner: Runner,
        streams: Sequence[Stream],
        exact: NDArray[np.float32],
        seed: int,
    ) -> None:
        self._runner, self._streams, self._exact, self._seed = runner, streams, exact, seed

    def __call__(self, plan: Plan, progress: Progress = lambda done, total: None) -> Verdict:
        rows = self._exact.shape[1]
        actions, work = self._runner.run(plan, self._streams, self._seed, rows, progress)
        return Verdict(ActionError.between(actions, self._exact), work)

"""Plans judged on several processes, each with one thread and its own copy of the policy."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.errors import BackendError
from smolvla_edge.plan import Plan
from smolvla_edge.source import open_source
from smolvla_edge.tune.judge import Judge, Runner
from smolvla_edge.tune.streams import Stream

Tick = Callable[[], None]
_TICK_S = 10.0


@dataclass(frozen=True)
class Bench:
    """What a bundle's plans are judged on; all of it can be sent to a process."""

    policy: str
    streams: tuple[Stream, ...]
    exact: NDArray[np.float32]
    seed: int

    def judge(self, threads: int | None) -> Judge:
        runner = Runner(open_source(self.policy), threads=threads)
        return Judge(runner, self.streams, self.exact, self.seed)


class Workers:
    """`evaluate` is what a search calls. workers 1: in this process, with `threads`.

    Raises BackendError from `evaluate` when a process died.
    """

    def __init__(self, bench: Bench, workers: int, threads: int | None, tick: Tick) -> None:
        self._tick = tick
        self._pool: ProcessPoolExecutor | None = None
        if workers == 1:
            self._judge = bench.judge(threads)
            return
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),  # the core's threads survive no fork
            initializer=_open,
            initargs=(bench,),
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def evaluate(self, plans: Sequence[Plan]) -> Iterator[tuple[float, float]]:
        """(error, work) of each plan, in order."""
        if self._pool is None:
            for plan in plans:
                yield _numbers(self._judge, plan, self._tick)
            return
        try:
            for future in [self._pool.submit(_judge_here, plan) for plan in plans]:
                yield self._wait(future)
        except BrokenProcessPool as cause:
            raise BackendError(
                "a process died (out of memory, or killed); trials that were done are kept. The "
                "same command goes on; with fewer --workers it needs less memory"
            ) from cause

    def _wait(self, future: Future[tuple[float, float]]) -> tuple[float, float]:
        while True:
            try:
                return future.result(timeout=_TICK_S)
            except NotYet:
                self._tick()


_judge: Judge | None = None


def _open(bench: Bench) -> None:
    global _judge
    _judge = bench.judge(1)


def _judge_here(plan: Plan) -> tuple[float, float]:
    if _judge is None:
        raise BackendError("expected a process that `_open` has prepared")
    return _numbers(_judge, plan, lambda: None)


def _numbers(judge: Judge, plan: Plan, tick: Tick) -> tuple[float, float]:
    verdict = judge(plan, lambda done, total: tick())
    return verdict.error.rms_of_range, verdict.work.total

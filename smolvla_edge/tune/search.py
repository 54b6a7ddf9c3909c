"""The search: trials asked in batches, judged in parallel, told in order.

What a sampler proposes depends on its seed and on the trials it sees. Every trial has a seed of its
own, from the search's seed and the trial's number, and within a batch nothing is told before all of
it was asked: so the same seed gives the same trials with any number of workers, and after an
interruption too, wherever it came.

A trial that was asked and never told is judged by the next process that comes by: at once where the
storage is nobody else's, otherwise when its owner has been silent for `STALE_S`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smolvla_edge.plan import Plan
from smolvla_edge.plan_words import write_words
from smolvla_edge.tune.space import Space
from smolvla_edge.tune.storage import need_optuna

Progress = Callable[[int, int], None]
Evaluate = Callable[[Sequence[Plan]], Iterator[tuple[float, float]]]
"""Plans -> the (error, work) of each, in their order."""

BATCH = 16  # also the sampler's population
STALE_S = 300.0
_ALIVE = "alive "
_OWNER, _PLAN = "owner", "plan"


@dataclass(frozen=True)
class Trial:
    """A plan that was judged. work: multiply-adds of a call."""

    number: int
    plan: Plan
    error: float
    work: float


class Search:
    """One bundle's study. steps: the checkpoint's. shared: others may be writing to it too."""

    def __init__(
        self, study: Any, space: Space, steps: int, seed: int, *, shared: bool = False
    ) -> None:
        self._study, self._space, self._steps, self._seed = study, space, steps, seed
        self._shared = shared
        self._me = uuid.uuid4().hex
        self._told_alive = float("-inf")

    def run(
        self,
        count: int,
        evaluate: Evaluate,
        progress: Progress = lambda done, total: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Go on until `count` trials, rounded up to whole batches, were asked and none of ours is
        left."""
        target = -(-count // BATCH) * BATCH
        while True:
            self.alive(clock)
            batch = self._next_batch(target, clock)
            if not batch:
                return
            known = {write_words(t.plan, self._steps): (t.error, t.work) for t in self.trials()}
            words = [write_words(self._space.plan(params), self._steps) for _, params in batch]
            plans = {
                word: self._space.plan(params)
                for word, (_, params) in zip(words, batch, strict=True)
                if word not in known
            }
            done = len(self._trials("COMPLETE"))
            progress(done, target)
            results = iter(zip(plans, evaluate(list(plans.values())), strict=True))
            for (number, _), word in zip(batch, words, strict=True):
                while word not in known:
                    found, value = next(results)
                    known[found] = value
                    self.alive(clock)
                # Another machine may have taken this trial over.
                self._study.tell(number, known[word], skip_if_finished=True)
                done += 1
                progress(done, target)

    def trials(self) -> list[Trial]:
        """Those that were judged, in order."""
        return [
            Trial(t.number, self._space.plan(t.params), t.values[0], t.values[1])
            for t in self._trials("COMPLETE")
        ]

    def alive(self, clock: Callable[[], float] = time.time) -> None:
        """Tell others that this process has not died; to be called often."""
        if self._shared and clock() - self._told_alive > STALE_S / 10:
            self._told_alive = clock()
            self._study.set_user_attr(_ALIVE + self._me, self._told_alive)

    def _next_batch(
        self, target: int, clock: Callable[[], float]
    ) -> list[tuple[int, dict[str, Any]]]:
        """(number, params) of abandoned trials, and of new ones up to the end of their batch."""
        batch = [(t.number, dict(t.params)) for t in self._abandoned(clock())]
        begins = batch[0][0] if batch else len(self._trials())
        end = min((begins // BATCH + 1) * BATCH, target)
        while (number := self._count_asked()) < end:
            batch.append(self._ask(number))
        return batch

    def _ask(self, number: int) -> tuple[int, dict[str, Any]]:
        study, first = self._study, self._space.first()
        # Machines that share a storage must not draw the same; nothing is reproducible there.
        own = [self._seed, number, *([int(self._me, 16)] if self._shared else [])]
        study.sampler = sampler(own)
        if number < len(first) and not self._trials("WAITING"):
            study.enqueue_trial(first[number])
        trial = study.ask()
        params = self._space.draw(trial)
        trial.set_user_attr(_PLAN, write_words(self._space.plan(params), self._steps))
        trial.set_user_attr(_OWNER, self._me)
        return trial.number, params

    def _abandoned(self, now: float) -> list[Any]:
        seen = self._study.user_attrs
        found = []
        for trial in self._trials("RUNNING"):
            owner = trial.user_attrs.get(_OWNER, "")
            silent = now - seen.get(_ALIVE + owner, 0.0) > STALE_S
            if owner == self._me or (self._shared and not silent):
                continue
            if _PLAN in trial.user_attrs:
                found.append(trial)
            else:  # its process died in the moment of drawing it: the numbers are not all there
                self._study.tell(trial.number, state=_state("FAIL"), skip_if_finished=True)
        return found

    def _count_asked(self) -> int:
        return len(self._trials()) - len(self._trials("WAITING"))

    def _trials(self, state: str | None = None) -> list[Any]:
        states = None if state is None else [_state(state)]
        found: list[Any] = self._study.get_trials(deepcopy=False, states=states)
        return found


def sampler(seed: Sequence[int]) -> Any:
    """The sampler of one trial. (docs/dead-ends.md: NSGA-II beside TPE.)"""
    optuna = need_optuna()
    own = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return optuna.samplers.NSGAIISampler(population_size=BATCH, seed=own)


def _state(name: str) -> Any:
    return need_optuna().trial.TrialState[name]

"""What a layer is given while others are skipped, beside what the unskipped model has there.

Both models run in PyTorch over the same observations with the same noises (extra torch). The expert
is fed the actions that the unskipped flow passes, at every denoise step: its targets are of those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from smolvla_edge.backends.torch import TorchBackend
from smolvla_edge.compress.gaps import Lesson
from smolvla_edge.compress.learn import Sample
from smolvla_edge.compress.observations import Observation, Observations
from smolvla_edge.plan import Plan, Skip
from smolvla_edge.policy import Policy
from smolvla_edge.source import Source

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Taught:
    """Of one observation: what each lesson's layer is to give, call by call, and the action tokens
    that go into the expert, step by step."""

    outputs: dict[Lesson, list[tuple[Tensor, ...]]]
    tokens: list[Tensor]


class Classroom:
    """The unskipped model's states, and a second model that learns to reach them."""

    def __init__(
        self,
        source: Source,
        observations: Observations,
        lessons: Sequence[Lesson],
        plan: Plan,
        *,
        seed: int = 0,
        threads: int | None = None,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self._source, self._plan, self._seed = source, plan, seed
        self._observations = observations
        self._progress = progress
        self._student = TorchBackend(source.model, source.tensors, source.contract, threads=threads)
        # The prefix is all that is needed of a call: the expert is run by itself.
        skip = Skip(vision=plan.skip.vision, vlm=plan.skip.vlm)
        self._policy = Policy(source, self._student, Plan(steps=1, horizon=1, skip=skip))
        self._taught = self._teach(lessons, threads)

    def layer(self, lesson: Lesson) -> nn.Module:
        """The one that learns."""
        return self._student.model.get_submodule(lesson.module)

    def samples(self, lesson: Lesson) -> list[Sample]:
        """What the layer is given now, with all that was learnt so far, and what it is to give."""
        found = []
        for number, seen in enumerate(self._observations):
            self._progress(f"what {lesson.module} is given", number, len(self._observations))
            taught = self._taught[number]
            inputs = self._inputs(lesson, seen, taught.tokens, self._seed + number)
            for given, wanted in zip(inputs, taught.outputs[lesson], strict=True):
                rows = None
                if lesson.part == "vlm":  # padding and absent cameras are nobody's
                    rows = given[2].diagonal(dim1=1, dim2=2)
                found.append(Sample(given, wanted, rows))
        return found

    def _inputs(
        self, lesson: Lesson, seen: Observation, tokens: Sequence[Tensor], seed: int
    ) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []
        caches: list[Any] = []
        model = self._student.model
        with (
            _noted(model.text, lambda inputs, output: caches.append(output)),
            _noted(self.layer(lesson), lambda inputs, output: calls.append(inputs)),
        ):
            self._policy.predict(seen.images, seen.state, seen.task, seed=seed)
            if lesson.part == "expert":
                calls.clear()
                with torch.inference_mode():
                    for step in tokens:
                        model.expert(step, caches[0], skip=self._plan.skip.expert)
        if lesson.part == "vision":
            calls = self._present(calls, seen)
        return [tuple(map(_kept, inputs)) for inputs in calls]

    def _teach(self, lessons: Sequence[Lesson], threads: int | None) -> list[Taught]:
        source = self._source
        backend = TorchBackend(source.model, source.tensors, source.contract, threads=threads)
        policy = Policy(source, backend, replace(self._plan, skip=Skip()))
        found = []
        for number, seen in enumerate(self._observations):
            self._progress("the unskipped model", number, len(self._observations))
            calls, tokens = _watched(backend.model, lessons, policy, seen, self._seed + number)
            outputs = {}
            for lesson, given in calls.items():
                mine = self._present(given, seen) if lesson.part == "vision" else given
                outputs[lesson] = [tuple(map(_kept, values_of(lesson, y))) for y in mine]
            found.append(Taught(outputs, [_kept(x) for x in tokens]))
        return found

    def _present(self, calls: list[Any], seen: Observation) -> list[Any]:
        """Without those of cameras that the observation lacks, which are computed and masked."""
        frames = [frame for _, frame in self._source.contract.select_frames(seen.images)]
        return [call for call, frame in zip(calls, frames, strict=True) if frame is not None]


def values_of(lesson: Lesson, output: Any) -> tuple[Tensor, ...]:
    """What a lesson is about, of what its layer returns."""
    if lesson.part != "vlm":
        return (output,)
    state, (key, value) = output
    return (key, value) if lesson.keys_only else (state, key, value)


def _watched(
    model: nn.Module, lessons: Sequence[Lesson], policy: Policy, seen: Observation, seed: int
) -> tuple[dict[Lesson, list[Any]], list[Tensor]]:
    """Of one prediction of the unskipped model: what came out where a lesson ends, and what went
    into the expert."""
    calls: dict[Lesson, list[Any]] = {lesson: [] for lesson in lessons}
    tokens: list[Tensor] = []
    hooks = [model.get_submodule("expert").register_forward_hook(
        lambda module, inputs, output: tokens.append(inputs[0]))]  # fmt: skip
    for lesson, found in calls.items():
        end = replace(lesson, layer=lesson.until).module
        hooks.append(model.get_submodule(end).register_forward_hook(
            lambda module, inputs, output, found=found: found.append(output)))  # fmt: skip
    try:
        policy.predict(seen.images, seen.state, seen.task, seed=seed)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, tokens


@contextmanager
def _noted(module: nn.Module, note: Callable[[Any, Any], None]) -> Iterator[None]:
    """`note` is told of the inputs and the output of every call."""
    hook = module.register_forward_hook(lambda _, inputs, output: note(inputs, output))
    try:
        yield
    finally:
        hook.remove()


def _kept(value: Any) -> Any:
    """A tensor of a prediction, which autograd takes only as a copy."""
    return value.clone() if isinstance(value, Tensor) else value

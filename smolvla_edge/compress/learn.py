"""One layer learns given outputs from given inputs (extra torch)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smolvla_edge.errors import NonFiniteError

_WARM_UP = 0.1  # of the steps, in which the rate rises
_CLIP = 1.0  # the largest norm of a gradient


@dataclass(frozen=True)
class Practice:
    """How long and how fast: steps of `batch` samples each, AdamW at `rate`, which rises over the
    first tenth and falls to nothing over the rest (half a cosine)."""

    steps: int
    batch: int
    rate: float
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """One call of a layer: its arguments, batch first, what it is to give (tensors with the same
    batch axis and an axis of rows), and which rows count [B, n] bool (None: all)."""

    inputs: tuple[Any, ...]
    targets: tuple[Tensor, ...]
    rows: Tensor | None = None

    @property
    def shapes(self) -> tuple[Any, ...]:
        """Samples of the same are computed together."""
        return tuple(tuple(x.shape) for x in (*self.inputs, *self.targets) if isinstance(x, Tensor))


def learn(
    layer: nn.Module,
    samples: Sequence[Sample],
    outputs: Callable[[Any], tuple[Tensor, ...]],
    practice: Practice,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[float, float]:
    """Train all weights of the layer in place; -> the loss over all samples before and after.

    outputs: from what the layer returns to what the targets are of. The loss is the squared error,
    each channel over its own variance, so that it is 1 for a layer that knows the mean alone; mean
    over targets. The same seed gives the same weights on one machine. Raises NonFiniteError.
    """
    weighing = _weighing(samples)
    for parameter in layer.parameters():  # of its own memory, which the optimiser writes into
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(True)

    def loss_of(batch: Sequence[Sample]) -> Tensor:
        total = torch.zeros(())
        for together in _together(batch):
            inputs = [_joined(values) for values in zip(*(s.inputs for s in together), strict=True)]
            given = outputs(layer(*inputs))
            rows = None
            if together[0].rows is not None:
                rows = torch.cat([s.rows for s in together if s.rows is not None])
            for number, (value, weight) in enumerate(zip(given, weighing, strict=True)):
                wanted = torch.cat([s.targets[number] for s in together])
                error = ((value - wanted).flatten(2) ** 2 * weight).mean(2)
                error = error if rows is None else error[rows]
                total = total + error.mean() * len(together) / (len(batch) * len(weighing))
        return total

    def average() -> float:
        with torch.no_grad():
            parts = [
                samples[i : i + practice.batch] for i in range(0, len(samples), practice.batch)
            ]
            return float(sum(loss_of(part) * len(part) for part in parts)) / len(samples)

    before = average()
    random = torch.Generator().manual_seed(practice.seed)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=practice.rate, weight_decay=0.0)
    batches = _batches(len(samples), practice.batch, random)
    for step in range(practice.steps):
        progress(step, practice.steps)
        for group in optimiser.param_groups:
            group["lr"] = practice.rate * _share(step, practice.steps)
        loss = loss_of([samples[i] for i in next(batches)])
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(
                f"the loss became {float(loss.detach())} in step {step}: expected a finite one; "
                "try a lower rate"
            )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(layer.parameters(), _CLIP)
        optimiser.step()
    layer.requires_grad_(False)
    progress(practice.steps, practice.steps)
    return before, average()


def _weighing(samples: Sequence[Sample]) -> list[Tensor]:
    """For each target one over the variance of its channels, over all rows that count."""
    found = []
    for number in range(len(samples[0].targets)):
        values = [sample.targets[number].flatten(2) for sample in samples]
        rows = torch.cat(
            [
                value.flatten(0, 1) if sample.rows is None else value[sample.rows]
                for value, sample in zip(values, samples, strict=True)
            ]
        ).double()
        variance = rows.var(0, correction=0)
        # A channel that hardly moves would weigh without bound.
        found.append((1 / variance.clamp(min=1e-4 * float(variance.mean()))).float())
    return found


def _together(batch: Sequence[Sample]) -> Iterator[list[Sample]]:
    groups: dict[tuple[Any, ...], list[Sample]] = {}
    for sample in batch:
        groups.setdefault(sample.shapes, []).append(sample)
    yield from groups.values()


def _joined(values: tuple[Any, ...]) -> Any:
    return torch.cat(values) if isinstance(values[0], Tensor) else values[0]


def _batches(count: int, size: int, random: torch.Generator) -> Iterator[list[int]]:
    """Every sample once before any comes again."""
    queue: list[int] = []
    while True:
        while len(queue) < size:
            queue += torch.randperm(count, generator=random).tolist()
        yield queue[:size]
        del queue[:size]


def _share(step: int, steps: int) -> float:
    """Of the rate, in this step."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

"""The flow under a plan: other times, another solver, a warm start, an early end (see plan.py).

The plain flow of a checkpoint, equal Euler steps from time 1, is `flow.integrate`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from smolvla_edge.model.flow import guide, integrate
from smolvla_edge.model.layers import Record, ignore
from smolvla_edge.plan import Plan
from smolvla_edge.rtc import Guidance


class Evaluator:
    """The velocity after guidance, and how often it was asked for."""

    def __init__(
        self,
        velocity: Callable[[Tensor, Tensor, int], Tensor],
        guidance: Guidance | None,
        chunk: int,
        record: Record,
    ):
        self._velocity = velocity
        self._guidance = guidance
        self._chunk = chunk
        self._record = record
        self.count = 0

    def __call__(self, x: Tensor, time: float) -> Tensor:
        times = torch.full((x.shape[0],), time, dtype=torch.float32, device=x.device)
        v = self._velocity(x, times, self.count)
        self._record(f"mid.time.step{self.count}", times)
        self._record(f"out.v_t.step{self.count}", v)
        self.count += 1
        return v if self._guidance is None else guide(self._guidance, v, x, time, self._chunk)

    def arrived(self, x: Tensor) -> Tensor:
        """Record x, where the flow is after the last evaluation."""
        self._record(f"out.x_t.after_step{self.count - 1}", x)
        return x


def equal_steps(count: int, start: float) -> list[tuple[float, float]]:
    """(time, dt) of each of `count` steps from `start` to 0."""
    return [(start * (1.0 + k * (-1.0 / count)), -start / count) for k in range(count)]


def plan_steps(plan: Plan, start: float) -> list[tuple[float, float]]:
    """(time, dt) of each step, the plan's times all multiplied by `start`."""
    if plan.schedule is None:
        return equal_steps(plan.steps, start)
    times = [start * time for time in plan.schedule]
    return [(time, later - time) for time, later in pairwise(times)]


def warm(noise: Tensor, left_over: Tensor, start: float) -> Tensor:
    """Where a flow begins at time `start` that continues a chunk.

    noise [B, h, max_action_dim]; left_over [n >= 1, d <= max_action_dim]: it goes on as it ends
    where it is too short, and is 0 in the dimensions it lacks.
    """
    rows = torch.arange(noise.shape[1], device=noise.device).clamp(max=len(left_over) - 1)
    chunk = torch.zeros_like(noise)
    chunk[:, :, : left_over.shape[1]] = left_over[rows]
    return start * noise + (1.0 - start) * chunk


def solve(
    velocity: Callable[[Tensor, Tensor, int], Tensor],
    noise: Tensor,
    plan: Plan,
    chunk: int,
    action_dim: int,
    guidance: Guidance | None = None,
    record: Record = ignore,
) -> tuple[Tensor, int]:
    """noise [B, h, max_action_dim] float32 -> actions of the same shape, number of evaluations.

    velocity and chunk as in `integrate`. With plan.warm_start the guidance's chunk is what the flow
    starts from, and guides nothing. plan.stop and plan.adaptive look at the first `action_dim`
    dimensions of all rows, of the whole batch.
    """
    x, start = noise, 1.0
    if plan.warm_start is None and _is_plain(plan):
        return integrate(velocity, noise, plan.steps, chunk, guidance, record), plan.steps
    if plan.warm_start is not None and guidance is not None:
        start = plan.warm_start
        left_over = torch.as_tensor(guidance.prev, dtype=torch.float32, device=x.device)
        x, guidance = warm(noise, left_over, start), None
    evaluate = Evaluator(velocity, guidance, chunk, record)
    if plan.adaptive is None:
        x = _fixed(evaluate, x, plan_steps(plan, start), plan, action_dim)
    else:
        x = _adaptive(evaluate, x, start, plan, plan.adaptive, action_dim)
    return x, evaluate.count


def _is_plain(plan: Plan) -> bool:
    """Whether all steps are Euler's and equal."""
    asked = plan.schedule, plan.adaptive, plan.stop
    return plan.solver == "euler" and asked == (None, None, None)


def _fixed(
    evaluate: Evaluator, x: Tensor, steps: list[tuple[float, float]], plan: Plan, action_dim: int
) -> Tensor:
    """Step by step; with plan.stop until two estimates of where it leads agree."""
    last: tuple[Tensor, float] | None = None
    estimate: Tensor | None = None
    for time, dt in steps:
        v = evaluate(x, time)
        if plan.stop is not None:
            before, estimate = estimate, x - time * v
            if before is not None and _largest(estimate - before, action_dim) <= plan.stop:
                return evaluate.arrived(estimate)
        slope = adams_bashforth(v, dt, *last) if plan.solver == "ab2" and last is not None else v
        x = evaluate.arrived(x + dt * slope)
        last = v, dt
    return x


def adams_bashforth(v: Tensor, dt: float, last_v: Tensor, last_dt: float) -> Tensor:
    """The mean velocity of the step dt, going on in a line from the last velocity through v."""
    half = dt / last_dt / 2
    return (1 + half) * v + -half * last_v


def _adaptive(
    evaluate: Evaluator,
    x: Tensor,
    start: float,
    plan: Plan,
    cosines: tuple[float, float],
    action_dim: int,
) -> Tensor:
    """A step to half the time, and from there as many as the turn of the velocity asks for."""
    half, (high, low) = start / 2, cosines
    first = evaluate(x, start)
    x = evaluate.arrived(x + -half * first)
    v = evaluate(x, half)
    turn = _cosine(first, v, action_dim)  # NaN without a direction: then as many as there are
    count = 1 if turn > high else 3 if turn > low else (plan.steps + 1) // 2
    for k, (time, dt) in enumerate(equal_steps(count, half)):
        if k:
            v = evaluate(x, time)
        x = evaluate.arrived(x + dt * v)
    return x


def _largest(x: Tensor, action_dim: int) -> float:
    return x[..., :action_dim].abs().max().item()


def _cosine(one: Tensor, other: Tensor, action_dim: int) -> float:
    a, b = (x[..., :action_dim].double() for x in (one, other))
    return ((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()).item()

"""The flow loop as numbers, for a graph that integrates whatever it is given.

Each step is a row of five float32: time, dt, now, before, gain. The loop computes

    v = velocity(x, time)
    v = v - gain * (pull_target - (x - time * v)) * pull_weights
    x = x + dt * (now * v + before * last);  last = v

so that Euler, Adams-Bashforth, a schedule, a warm start and real-time chunking are one graph. The
numbers are those of model/solver.py and model/flow.py, the torch reference.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from smolvla_edge.plan import Plan
from smolvla_edge.rtc import Guidance

COLUMNS = ("time", "dt", "now", "before", "gain")


def schedule_rows(plan: Plan, start: float = 1.0, pull_limit: float | None = None) -> np.ndarray:
    """float32 [steps, 5] from time `start` to 0. pull_limit: of the gain (max_guidance_weight),
    where the chunk is pulled towards the last one."""
    if plan.schedule is None:
        count = plan.steps
        steps = [(start * (1.0 + k * (-1.0 / count)), -start / count) for k in range(count)]
    else:
        times = [start * time for time in plan.schedule]
        steps = [(time, later - time) for time, later in pairwise(times)]
    rows = np.zeros((len(steps), len(COLUMNS)), np.float32)
    for k, (time, dt) in enumerate(steps):
        half = dt / steps[k - 1][1] / 2 if plan.solver == "ab2" and k else 0.0
        gain = 0.0 if pull_limit is None else pull_strength(time, pull_limit)
        rows[k] = time, dt, 1 + half, 0.0 - half, gain
    return rows


def pull_strength(time: float, limit: float) -> float:
    """Factor of the whole pull at `time` (1 = noise, 0 = actions), at most `limit`; in float32."""
    # Scalars of float32 among themselves: numpy 1 widens them beside a number of Python's.
    one, tau = np.float32(1), np.float32(1.0 - time)
    rest = (one - tau) * (one - tau)
    with np.errstate(divide="ignore"):  # infinite at tau = 0, and limited as any other
        strength = (one - tau) / tau * ((rest + tau * tau) / rest)
    return float(min(strength, np.float32(limit)))


def pull_weights(guidance: Guidance, chunk: int) -> np.ndarray:
    """How strongly each action of a chunk is pulled -> float32 [chunk] in [0, 1]."""
    end = min(guidance.execution_horizon, guidance.prev.shape[0], chunk)
    start = min(guidance.inference_delay, end)
    weights = np.zeros(chunk, np.float32)
    weights[:start] = 1.0
    if guidance.schedule == "ONES":
        weights[:end] = 1.0
    elif guidance.schedule in ("LINEAR", "EXP"):
        ramp = np.linspace(1, 0, end - start + 2, dtype=np.float32)[1:-1]
        if guidance.schedule == "EXP":
            ramp = ramp * np.expm1(ramp) / np.float32(math.e - 1)
        weights[start:end] = ramp
    return weights


def pull_target(guidance: Guidance, rows: int, width: int) -> np.ndarray:
    """What is left of the last chunk, zero-padded -> float32 [rows, width]."""
    target = np.zeros((rows, width), np.float32)
    prev = guidance.prev[:rows]
    target[: prev.shape[0], : prev.shape[1]] = prev
    return target


def warm(noise: np.ndarray, left_over: np.ndarray, start: float) -> np.ndarray:
    """Where a flow begins at time `start` that continues a chunk -> float32, as noise [h, width].

    left_over [n >= 1, d <= width] goes on as it ends where it is too short, and is 0 in the
    dimensions it lacks.
    """
    rows = np.minimum(np.arange(len(noise)), len(left_over) - 1)
    chunk = np.zeros_like(noise)
    chunk[:, : left_over.shape[1]] = left_over[rows]
    return np.float32(start) * noise + np.float32(1.0 - start) * chunk

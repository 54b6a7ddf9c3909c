"""Flow matching: from noise at time 1 to actions at time 0, optionally guided by the last chunk."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from smolvla_edge.kernels import replace_torch
from smolvla_edge.model.layers import Record, ignore
from smolvla_edge.rtc import Guidance


def time_embedding(time: Tensor, width: int, min_period: float, max_period: float) -> Tensor:
    """time [B] -> [B, width] float64: width/2 sines, then width/2 cosines.

    Periods grow geometrically from min_period to max_period, both ends included.
    """
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=time.device)
    period = min_period * (max_period / min_period) ** fraction
    angle = (1.0 / period * 2 * math.pi)[None] * time[:, None]
    return torch.cat((angle.sin(), angle.cos()), 1)


def pull_weights(guidance: Guidance, chunk: int) -> Tensor:
    """How strongly each action of a chunk is pulled towards the last chunk -> [chunk] in [0,1].

    The first `inference_delay` actions run while this chunk is computed and are held at 1; up to
    `execution_horizon` the pull fades after the schedule; beyond, the new chunk is free.
    """
    end = min(guidance.execution_horizon, guidance.prev.shape[-2], chunk)
    start = min(guidance.inference_delay, end)
    weights = torch.zeros(chunk)
    weights[:start] = 1.0
    if guidance.schedule == "ONES":
        weights[:end] = 1.0
    elif guidance.schedule in ("LINEAR", "EXP"):
        ramp = torch.linspace(1, 0, end - start + 2)[1:-1]
        if guidance.schedule == "EXP":
            ramp = ramp * torch.expm1(ramp) / (math.e - 1)
        weights[start:end] = ramp
    return weights


def pull_strength(time: float, limit: float) -> Tensor:
    """Factor of the whole pull at `time` (1 = noise, 0 = actions) -> scalar float32 <= limit."""
    tau = torch.tensor(1.0 - time, dtype=torch.float32)
    rest = (1 - tau) ** 2  # at tau = 0 the factor is infinite, and clamped as any other
    return ((1 - tau) / tau * ((rest + tau**2) / rest)).clamp(max=limit)


def pull_target(guidance: Guidance, x: Tensor, chunk: int) -> Tensor:
    """What is left of the last chunk, zero-padded -> [h, max_action_dim], where x is [B, h, same].

    So padded action dimensions are pulled towards 0.
    """
    target = x.new_zeros(chunk, x.shape[2])
    prev = torch.as_tensor(guidance.prev, dtype=torch.float32, device=x.device)
    target[: prev.shape[-2], : prev.shape[-1]] = prev
    return target[: x.shape[1]]


def guide(guidance: Guidance, v: Tensor, x: Tensor, time: float, chunk: int) -> Tensor:
    """Velocity v corrected so that the chunk moves towards what is left of the last one.

    v and x [B, h, max_action_dim] float32, h <= chunk -> as v. The chunk expected at time 0 is
    x - time * v. LeRobot differentiates that through x with v held constant, so the Jacobian is
    the identity and no backward pass is needed.
    """
    weights = pull_weights(guidance, chunk)[: x.shape[1], None].to(x.device)
    error = (pull_target(guidance, x, chunk) - (x - time * v)) * weights
    return v - pull_strength(time, guidance.max_guidance_weight).to(x.device) * error


def euler(
    x: Tensor, v: Tensor, dt: float, time: float, guidance: Guidance | None, chunk: int
) -> Tensor:
    """x [B, h, max_action_dim] after a step of dt along velocity v, guided if there is guidance."""
    if replace_torch(x):
        from smolvla_edge.kernels.flow_step import flow_step

        x, v = x.contiguous(), v.contiguous()
        if guidance is None:
            return flow_step(x, v, dt=dt)
        previous = pull_target(guidance, x, chunk)
        weights = pull_weights(guidance, chunk)[: x.shape[1]].to(x.device)
        gain = pull_strength(time, guidance.max_guidance_weight).item()
        return flow_step(x, v, dt=dt, t=time, previous=previous, weights=weights, gain=gain)
    if guidance is not None:
        v = guide(guidance, v, x, time, chunk)
    return x + dt * v


def integrate(
    velocity: Callable[[Tensor, Tensor, int], Tensor],
    noise: Tensor,
    steps: int,
    chunk: int,
    guidance: Guidance | None = None,
    record: Record = ignore,
) -> Tensor:
    """Euler from time 1 to 0 in `steps` equal steps.

    noise [B, h, max_action_dim] float32 -> actions of the same shape. velocity(x, time [B], step)
    gives dx/dtime. Time is 1 - k/steps, computed anew each step and not accumulated. `chunk` is the
    full chunk's length, which the guidance schedule refers to also when h is shorter.
    """
    dt = -1.0 / steps
    x = noise
    for k in range(steps):
        time = 1.0 + k * dt
        times = torch.full((x.shape[0],), time, dtype=torch.float32, device=x.device)
        v = velocity(x, times, k)
        record(f"mid.time.step{k}", times)
        record(f"out.v_t.step{k}", v)
        x = euler(x, v, dt, time, guidance, chunk)
        record(f"out.x_t.after_step{k}", x)
    return x

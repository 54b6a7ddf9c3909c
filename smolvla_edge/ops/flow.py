"""The step of flow matching, from a table of steps in GPU memory, so that a graph can replay it."""

from __future__ import annotations

from smolvla_edge.ops.arrays import Array, Stream, call


def flow_step(
    x: Array,
    velocity: Array,
    schedule: Array,
    step: Array,
    previous: Array | None = None,
    weight: Array | None = None,
    stream: Stream = None,
    *,
    last: Array | None = None,
) -> Array:
    """x = x + dt · v in place, with dt, t, gain = schedule[step].

    v is `velocity`, or with `previous` and `weight` (real-time chunking) what pulls towards the
    rest of the previous chunk: v = velocity - gain · weight[r] · (previous - (x - t · velocity)).
    x, velocity and previous float32 [rows, dims]; schedule float32 [steps, 3]; step an int32 in GPU
    memory with 0 <= step < steps; weight float32 [rows]. Returns x.

    With `last`, float32 [rows, dims], the step is one of Adams and Bashforth: schedule has five
    columns, dt, t, gain, now, before = schedule[step], x = x + dt · (now · v + before · last), and
    last becomes v. Raises as the module says.
    """
    call(
        "flow_step", x, stream, x=x, velocity=velocity, schedule=schedule, step=step,
        previous=previous, weight=weight, last=last,
    )  # fmt: skip
    return x


def advance(number: Array, stream: Stream = None) -> Array:
    """number[0] += 1 in GPU memory: int32 [1]. Returns it. Raises as the module says."""
    call("advance", number, stream, number=number)
    return number

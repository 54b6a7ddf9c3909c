"""Calls a policy with the engine's recording on, and measures what the numbers are divided by."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smolvla_edge.backends.native import NativeBackend, load_core
from smolvla_edge.errors import BackendError, InputError
from smolvla_edge.policy import Policy
from smolvla_edge.precision import COMPUTE
from smolvla_edge.profile.records import Call, build_call
from smolvla_edge.profile.summary import Ceiling

TASK = "grab the cup"  # with its newline 13 tokens of a byte, 4 of the real tokenizer
_FRAME = (480, 640)
_WARM_CALLS = 2
_CAPACITY = 1 << 16  # records; a call of SmolVLA's size has about 2000
# The best of many moments, each shorter than the slices in which a system shares a CPU.
_PEAKS, _PEAK_MS = 40, 2.0
_SEED = 0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Profile:
    """calls: all recorded ones, in order.  plain_ns: calls without recording, taken in turn.

    ceilings were measured before and after the calls, the larger counts. busy: the CPU time that
    this process got during the calls, of what its threads could use.
    """

    calls: Sequence[Call]
    plain_ns: Sequence[int]
    ceiling: Ceiling
    busy: float
    provenance: Mapping[str, Any]

    @property
    def typical(self) -> Call:
        """The call of median length: the one that is drawn and taken apart."""
        ordered = sorted(self.calls, key=lambda call: call.duration)
        return ordered[(len(ordered) - 1) // 2]

    @property
    def overhead(self) -> float:
        """What recording costs, as a part of a call: of medians, so that noise can be negative."""
        recorded = statistics.median(call.duration for call in self.calls)
        return recorded / statistics.median(self.plain_ns) - 1


def check_device(device: str) -> None:
    """Raises BackendError for a device on which operations cannot be timed one by one."""
    if device not in ("cpu", "auto"):
        raise BackendError(
            f"profile: expected device cpu, got {device!r}: on a GPU a stage is one graph, and its "
            "operations are not timed one by one. A chunk's timings tell its stages there; for "
            "kernels use NVIDIA's Nsight Systems: nsys profile --cuda-graph-trace=node "
            "smolvla-edge run ..."
        )


def measure(policy: Policy, cameras: int, calls: int, progress: Progress) -> Profile:
    """`calls` recorded calls and as many without recording, in turn, after a warm-up.

    The observation is made up; the first `cameras` cameras of the policy see it, the others are
    blank. Raises BackendError for a policy that does not run on the native backend, InputError for
    more cameras than it has.
    """
    backend = policy.engine
    if not isinstance(backend, NativeBackend):
        raise BackendError(f"expected the native backend, which can record; got {backend.name!r}")
    check_device(backend.info()["device"])
    names = list(policy.contract.robot_names().values())
    if not 1 <= cameras <= len(names):
        raise InputError(
            f"--cameras: expected 1 to {len(names)} ({', '.join(names)}), got {cameras}"
        )
    images = _frames(policy, names[:cameras])
    state = np.zeros(policy.contract.state_dim, np.float32)
    info = backend.info()
    before = _ceiling(info)
    recorded: list[Call] = []
    plain: list[int] = []

    def call() -> tuple[int, int]:
        used = time.process_time_ns()
        start = time.clock_gettime_ns(time.CLOCK_MONOTONIC)  # the clock that the engine reads
        chunk = policy.predict(images, state, TASK, seed=_SEED)
        end = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        used_ns.append(time.process_time_ns() - used)
        provenance.update(chunk.provenance)
        return start, end

    provenance: dict[str, Any] = {}
    used_ns: list[int] = []
    for i in range(_WARM_CALLS + 2 * calls):
        progress(i, _WARM_CALLS + 2 * calls)
        if i < _WARM_CALLS:
            call()
        elif (i - _WARM_CALLS) % 2 == 0:
            start, end = call()
            plain.append(end - start)
        else:
            backend.start_recording(_CAPACITY)
            try:
                start, end = call()
            finally:
                raw = backend.take_records()
            recorded.append(build_call(start, end, raw))
    wall = sum(plain) + sum(one.duration for one in recorded)
    busy = sum(used_ns[_WARM_CALLS:]) / (wall * info["threads"])
    return Profile(recorded, plain, _larger(before, _ceiling(info)), busy, provenance)


def _frames(policy: Policy, names: Sequence[str]) -> dict[str, np.ndarray]:
    """uint8 [480, 640, 3], or the model's own size when it does not resize."""
    model = policy.model
    height, width = _FRAME if model.resize else (model.image_size, model.image_size)
    random = np.random.default_rng(_SEED)
    return {name: random.integers(0, 256, (height, width, 3), dtype=np.uint8) for name in names}


def _ceiling(info: Mapping[str, Any]) -> Ceiling:
    core = load_core()
    threads = int(info["threads"])
    rates = {}
    for compute in COMPUTE:
        try:
            rates[compute] = max(
                float(core.peak(threads, info["isa"], _PEAK_MS, compute)) for _ in range(_PEAKS)
            )
        except BackendError:
            # Without instructions for it, bfloat16 products are made by float32 ones.
            rates[compute] = rates["float32"]
    with contextlib.suppress(BackendError):  # its loop exists for some instruction sets only
        rates["int8"] = max(
            float(core.peak(threads, info["isa"], _PEAK_MS, "int8")) for _ in range(_PEAKS)
        )
    return Ceiling(rates, threads)


def _larger(a: Ceiling, b: Ceiling) -> Ceiling:
    """Of two measurements of one machine: the faster, which others disturbed less."""
    rates = {name: max(rate, b.gflops[name]) for name, rate in a.gflops.items()}
    return Ceiling(rates, a.threads)

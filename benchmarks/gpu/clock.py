"""How long a call takes on the device: graphs of many calls, timed with events.

A kernel here takes microseconds, as long as its launch from Python. So calls are captured into a
CUDA graph, as the engine runs them, and replays of the graph are timed; a number is the time of a
replay over its calls, the gaps between kernels included.

Cold: calls take turns with so many sets of operands that nothing a call reads is left in the L2
from the last time. Warm: one set, always the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.summary import percentile

Call = Callable[[], Any]
COLD_TIMES_L2 = 3  # bytes of other operands between two uses of one, in sizes of the L2
MOST_SETS = 1024
CALLS, LONG_US = 32, 2000.0  # in a graph: so many, or as many as take so long
REPLAYS, FEW_REPLAYS, LONG_REPLAY_MS = 20, 5, 20.0  # at least; of replays that take long


def sets_for(nbytes: float, l2_bytes: float) -> int:
    """How many sets of operands of so many bytes make every use of one a cold one."""
    return max(2, min(MOST_SETS, -(-int(COLD_TIMES_L2 * l2_bytes) // max(1, int(nbytes)))))


def repeats_for(calls: int, round_us: float) -> int:
    """How often `calls` that together take `round_us` are repeated in one graph."""
    return max(1, min(-(-CALLS // calls), -(-int(LONG_US) // max(1, int(round_us)))))


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call. how: "graph", or "calls" where capturing it failed (`why`)."""

    median_us: float
    p90_us: float
    replays: int
    calls: int
    how: str
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def timing_of(samples: Sequence[float], calls: int, how: str, why: str = "") -> Timing:
    """samples: microseconds of one call, each the mean of a replay."""
    return Timing(percentile(samples, 0.5), percentile(samples, 0.9), len(samples), calls, how, why)


class DeviceClock:
    """Times calls on the current CUDA device."""

    def __init__(self, milliseconds: float) -> None:
        self.milliseconds = milliseconds
        self.stream = torch.cuda.Stream()
        self.l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size

    def time(self, calls: Sequence[Call]) -> Timing:
        """Of one call, when all of them run in order, again and again."""
        once = self._plain(calls)
        with torch.cuda.stream(self.stream):
            once()  # compiles, chooses algorithms, allocates workspaces
            round_us = 1e3 * self._milliseconds(once)
        ordered = list(calls) * repeats_for(len(calls), round_us)
        why = ""
        try:
            run = self._captured(ordered)
        except RuntimeError as error:  # an operator that waits for the device cannot be captured
            torch.cuda.synchronize()
            why = str(error).strip().splitlines()[0][:200]
            run = self._plain(ordered)
        return timing_of(self._samples(run, len(ordered)), len(ordered),
                         "calls" if why else "graph", why)  # fmt: skip

    def _captured(self, calls: Sequence[Call]) -> Call:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            for call in calls:
                call()
        return graph.replay

    @staticmethod
    def _plain(calls: Sequence[Call]) -> Call:
        def run() -> None:
            for call in calls:
                call()

        return run

    def _samples(self, run: Call, count: int) -> list[float]:
        """Microseconds of one call, by replay. The first replays are not counted."""
        found: list[float] = []
        with torch.cuda.stream(self.stream):
            longest = max(self._milliseconds(run) for _ in range(3))
            least = FEW_REPLAYS if longest > LONG_REPLAY_MS else REPLAYS
            deadline = time.perf_counter() + self.milliseconds * 1e-3
            while len(found) < least or time.perf_counter() < deadline:
                found.append(self._milliseconds(run) * 1e3 / count)
        return found

    def _milliseconds(self, run: Call) -> float:
        """Of the device, between two events around `run` on our stream."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(self.stream)
        run()
        end.record(self.stream)
        end.synchronize()
        return float(start.elapsed_time(end))


class HostClock:
    """The same on the CPU, to try the programs where there is no GPU. Its times mean nothing."""

    l2_bytes = 1 << 16

    def time(self, calls: Sequence[Call]) -> Timing:
        found = []
        for _ in range(3):
            start = time.perf_counter()
            for call in calls:
                call()
            found.append((time.perf_counter() - start) * 1e6 / len(calls))
        return timing_of(found, len(calls), "host")

"""How long the parts of a call of the torch backend take."""

from __future__ import annotations

import time

import torch


class Clock:
    """Milliseconds between laps; waits for the GPU first."""

    def __init__(self, device: str):
        self._wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        self._times: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        self._wait()
        now = time.perf_counter()
        self._times[name] = (now - self._last) * 1e3
        self._last = now

    def timings(self) -> dict[str, float]:
        return {**self._times, "total": (self._last - self._start) * 1e3}

"""How long one call takes; imported by the workers, needs nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_BATCH_SECONDS = 200e-6  # calls shorter than this are timed several at a time


def median_seconds(call: Callable[[], Any], budget_ms: float) -> float:
    """Median duration of one call over about `budget_ms`, after one call to warm up."""
    call()
    start = time.perf_counter()
    call()
    one = time.perf_counter() - start
    batch = max(1, round(_BATCH_SECONDS / max(one, 1e-9)))
    times = []
    deadline = time.perf_counter() + budget_ms * 1e-3
    while not times or time.perf_counter() < deadline:
        start = time.perf_counter()
        for _ in range(batch):
            call()
        times.append((time.perf_counter() - start) / batch)
    return sorted(times)[len(times) // 2]

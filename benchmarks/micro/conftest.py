"""Options, ceilings and the one way to measure of the microbenchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.ceilings import BURSTS, peak
from smolvla_edge import _core

SECONDS = 1.0  # about what one case may take


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=1, help="threads of linear and attention")


@pytest.fixture(scope="session")
def threads(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--threads"))


class Ceilings:
    """Register-resident loops and copies, each measured when it is first asked for."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._loops: dict[tuple[str, str], float | None] = {}
        self._copies: dict[tuple[int, int], float] = {}

    def loop(self, kind: str, isa: str) -> float | None:
        """GFLOP/s of the loop of a precision with the instructions of `isa`, or None."""
        if (kind, isa) not in self._loops:
            rates = [peak(kind, self._threads, isa) for _ in range(BURSTS)]
            self._loops[kind, isa] = None if None in rates else max(filter(None, rates))
        return self._loops[kind, isa]

    def products(self, compute: str, isa: str) -> tuple[str, float | None]:
        """(kind of loop, GFLOP/s) that `isa` computes a precision with.

        An ISA without bfloat16 products computes bfloat16 as float32 on rounded values.
        """
        rate = self.loop(compute, isa)
        return (compute, rate) if rate else ("float32", self.loop("float32", isa))

    def copy(self, rows: int, columns: int) -> float:
        """GB/s (read and written) of libc's memcpy of such a float32 matrix, one thread."""
        if (rows, columns) not in self._copies:
            loop = _core.KernelLoop("copy", "", rows, columns)
            times = max(1, (1 << 20) // (rows * columns))
            best = min(_seconds(lambda: loop.run(times), 1) / times for _ in range(20))
            self._copies[rows, columns] = 8.0 * rows * columns / best * 1e-9
        return self._copies[rows, columns]


def _seconds(call: Callable[[], Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


@pytest.fixture(scope="session")
def ceilings(threads: int) -> Ceilings:
    return Ceilings(threads)


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., None]:
    """measure(call, info, flops= or bytes_moved=, ceiling=, calls=) times `call`.

    `call` does the operation `calls` times. extra_info gets gflops or gbps, the share of
    `ceiling`, and everything in `info`.
    """

    def run(
        call: Callable[[], Any],
        info: dict[str, Any],
        *,
        ceiling: float | None,
        flops: float = 0.0,
        bytes_moved: float = 0.0,
        calls: int = 1,
    ) -> None:
        rounds = max(3, min(50, int(SECONDS / max(_seconds(call, 1), 1e-9))))
        benchmark.pedantic(call, rounds=rounds, iterations=1, warmup_rounds=1)
        benchmark.extra_info.update(info)
        if benchmark.stats is None:  # --benchmark-disable: a functional check
            return
        per_call = benchmark.stats.stats.median / calls
        rate = (flops or bytes_moved) / per_call * 1e-9
        benchmark.extra_info.update(
            {
                "gflops" if flops else "gbps": round(rate, 2),
                "share": round(rate / ceiling, 3) if ceiling else None,
                "ceiling": round(ceiling, 1) if ceiling else None,
                "us_per_call": round(per_call * 1e6, 3),
            }
        )

    return run

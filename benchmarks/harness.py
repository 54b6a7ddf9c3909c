"""Talk to worker processes, time them in turn, and know when the machine was not quiet."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")
PAUSE_SECONDS = 0.2  # before a run: lets the other worker's OpenMP threads stop spinning


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class WorkerError(RuntimeError):
    """A worker died, timed out or answered with an error."""


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def machine_busy_seconds() -> tuple[float, float]:
    """(CPU time of everything incl. stolen by the hypervisor, stolen alone), all CPUs."""
    user, nice, system, _idle, _wait, irq, soft, steal = (
        int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + soft + steal) / _TICK, steal / _TICK


class Worker:
    """One engine in a process of its own."""

    def __init__(self, name: str, command: list[str], cwd: Path, timeout: float = 600.0) -> None:
        self.name = name
        self.timeout = timeout
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd
        )
        self.ready: dict[str, Any] = self._read()["ready"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], self.timeout)[0]:
            raise WorkerError(f"{self.name}: no answer in {self.timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name}: the worker ended (exit {self._process.wait()})")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        if self._process.poll() is None and self._process.stdin is not None:
            try:
                self._process.stdin.write('{"cmd": "stop"}\n')
                self._process.stdin.close()
                self._process.wait(timeout=20)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()


def wait_for_quiet(limit: float, patience: float) -> None:
    """Return once nothing but us used more than `limit` of the CPUs for half a second.

    Gives up after `patience` seconds; the sample then shows that it was disturbed.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        own = cpu_seconds(os.getpid())
        busy, _ = machine_busy_seconds()
        time.sleep(0.5)
        others = machine_busy_seconds()[0] - busy - (cpu_seconds(os.getpid()) - own)
        if others <= limit * 0.5 * (os.cpu_count() or 1):
            return


@dataclass
class Sample:
    """One timed chunk. `foreign`: share of the machine's CPU time that was not this worker's."""

    ms: float
    stages: dict[str, float]
    foreign: float
    stolen: float
    peak_rss_mib: float
    actions: list[list[float]] = field(repr=False)


def timed_run(worker: Worker, **request: Any) -> Sample:
    """Run one request alone on the machine and measure who else computed meanwhile."""
    time.sleep(PAUSE_SECONDS)
    own = cpu_seconds(worker.pid) + cpu_seconds(os.getpid())
    busy, steal = machine_busy_seconds()
    start = time.perf_counter()
    answer = worker.ask(cmd="run", **request)
    wall = time.perf_counter() - start
    own = cpu_seconds(worker.pid) + cpu_seconds(os.getpid()) - own
    busy_now, steal_now = machine_busy_seconds()
    capacity = wall * (os.cpu_count() or 1)
    return Sample(
        ms=answer["ms"],
        stages=answer["stages"],
        foreign=max(0.0, busy_now - busy - own) / capacity,
        stolen=(steal_now - steal) / capacity,
        peak_rss_mib=answer["peak_rss_mib"],
        actions=answer["actions"],
    )


def percentile(values: list[float], share: float) -> float:
    """Linear interpolation between the sorted values, as numpy's default."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarise(samples: list[Sample], quiet_limit: float) -> dict[str, Any]:
    """Median, p10, p90 of the undisturbed samples (of all, when fewer than 3 are)."""
    quiet = [s for s in samples if s.foreign <= quiet_limit]
    used = quiet if len(quiet) >= min(3, len(samples)) else samples
    times = [s.ms for s in used]
    median = percentile(times, 0.5)
    stages = {name: percentile([s.stages[name] for s in used], 0.5) for name in used[0].stages}
    spread = (percentile(times, 0.9) - percentile(times, 0.1)) / median
    return {
        "median_ms": median,
        "p10_ms": percentile(times, 0.1),
        "p90_ms": percentile(times, 0.9),
        "min_ms": min(times),
        "stages_ms": stages,
        "samples": len(samples),
        "samples_used": len(used),
        "disturbed": len(samples) - len(quiet),
        "disturbed_used": used is samples and len(quiet) < len(samples),
        "spread": spread,
        "peak_rss_mib": max(s.peak_rss_mib for s in samples),
        "all_ms": [round(s.ms, 2) for s in samples],
        "all_foreign": [round(s.foreign, 4) for s in samples],
        "all_stolen": [round(s.stolen, 4) for s in samples],
    }


def action_difference(left: Sample, right: Sample) -> dict[str, float]:
    """Largest and mean absolute difference, and the largest magnitude of `right`."""
    pairs = [
        (a, b)
        for row_a, row_b in zip(left.actions, right.actions, strict=True)
        for a, b in zip(row_a, row_b, strict=True)
    ]
    gaps = [abs(a - b) for a, b in pairs]
    return {
        "max_abs": max(gaps),
        "mean_abs": sum(gaps) / len(gaps),
        "largest_action": max(abs(b) for _, b in pairs),
    }

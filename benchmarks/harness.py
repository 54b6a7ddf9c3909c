"""Talk to worker processes, time them one at a time, and know when the machine was not quiet."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.summary import Sample

_TICK = os.sysconf("SC_CLK_TCK")
PAUSE_SECONDS = 0.2  # before a run: lets the other workers' OpenMP threads stop spinning


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

    def __init__(
        self,
        name: str,
        command: list[str],
        cwd: Path,
        timeout: float = 600.0,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.timeout = timeout
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
        )
        self.ready: dict[str, Any] = self._read(timeout)["ready"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise WorkerError(f"{self.name}: no answer in {timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name}: the worker ended (exit {self._process.wait()})")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, timeout: float | None = None, **request: Any) -> dict[str, Any]:
        """One request, one answer; `timeout` seconds instead of the worker's own."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read(timeout or self.timeout)

    def close(self) -> None:
        if self._process.poll() is None and self._process.stdin is not None:
            try:
                self._process.stdin.write('{"cmd": "stop"}\n')
                self._process.stdin.close()
                self._process.wait(timeout=20)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()


def close_all(workers: dict[str, Worker]) -> None:
    for worker in workers.values():
        worker.close()


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


class Watch:
    """Who else computes between now and `stop`, besides this process and some workers."""

    def __init__(self, *workers: Worker) -> None:
        self._pids = [os.getpid(), *(worker.pid for worker in workers)]
        time.sleep(PAUSE_SECONDS)
        self._own = self._own_seconds()
        self._busy, self._steal = machine_busy_seconds()
        self._start = time.perf_counter()

    def _own_seconds(self) -> float:
        return sum(cpu_seconds(pid) for pid in self._pids)

    def stop(self) -> tuple[float, float]:
        """-> (share of the CPUs that others used, share that the hypervisor took)."""
        wall = time.perf_counter() - self._start
        own = self._own_seconds() - self._own
        busy, steal = machine_busy_seconds()
        capacity = wall * (os.cpu_count() or 1)
        return max(0.0, busy - self._busy - own) / capacity, (steal - self._steal) / capacity


def timed_runs(worker: Worker, calls: int = 1, lead_in: int = 0, **request: Any) -> list[Sample]:
    """Run a request so many times alone on the machine, and measure who else computed meanwhile.

    The first `lead_in` calls are not counted.
    """
    watch = Watch(worker)
    burst = worker.ask(cmd="burst", calls=calls, lead_in=lead_in, **request)
    foreign, stolen = watch.stop()
    return [
        Sample(
            ms=answer["ms"],
            stages=answer["stages"],
            foreign=foreign,
            stolen=stolen,
            peak_rss_mib=answer["peak_rss_mib"],
            actions=answer["actions"],
            device_mib=answer.get("device_mib"),
            allocated_mib=answer.get("allocated_mib"),
        )
        for answer in burst["answers"]
    ]

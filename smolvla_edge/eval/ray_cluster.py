"""The same episodes on a Ray cluster that is there already (extra `ray`).

Each actor is one process with one thread, as each worker of one machine is. The policy's folder
must be at the same path on every machine; smolvla-edge with its extra sim must be installed there.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from smolvla_edge.errors import MissingExtraError, SimulatorError
from smolvla_edge.eval.episode import EpisodeResult
from smolvla_edge.eval.runner import Job, Play, Setting, Worker
from smolvla_edge.eval.sides import Side

_PATIENCE = 5.0  # seconds for a connection


def connect(address: str, workers: int | None) -> tuple[Play, int]:
    """What `evaluate` takes as `play`, on the cluster at `address` ("auto": this one's), and how
    many actors play.

    workers: actors, at most one a free CPU; as many as these when None. Raises MissingExtraError
    without ray, SimulatorError for a cluster that cannot be reached or has no CPU to give.
    """
    try:
        import ray
    except ImportError as cause:
        raise MissingExtraError("a cluster needs ray: pip install 'smolvla-edge[ray]'") from cause
    _check_reachable(address)
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
    except Exception as cause:  # ray raises ConnectionError, ValueError, RuntimeError ...
        raise SimulatorError(f"--ray {address}: no cluster answers there: {cause}") from cause
    count = _free_cpus(ray, workers)
    if count < 1:
        raise SimulatorError(f"--ray {address}: expected a free CPU, all of them are taken")

    def play(side: Side, setting: Setting, jobs: Sequence[Job]) -> Iterator[EpisodeResult]:
        actor: Any = ray.remote(num_cpus=1)(Worker)
        actors = [actor.remote(side, setting) for _ in range(min(count, len(jobs)))]
        waiting = list(reversed(jobs))
        running: dict[Any, Any] = {}
        try:
            # An actor gets a job when it has started: one whose CPU was taken meanwhile gets none.
            starting = {one.__ray_ready__.remote(): one for one in actors}
            while waiting or running:
                (done,), _ = ray.wait([*running, *(starting if waiting else ())], num_returns=1)
                result = _result(ray, done) if done in running else None
                one = running.pop(done, None) or _started(ray, done, starting)
                if waiting:
                    running[one.run.remote(waiting.pop())] = one
                if result is not None:
                    yield result
        finally:
            for one in actors:
                ray.kill(one)

    return play, count


def _free_cpus(ray: Any, wanted: int | None) -> int:
    """At most `wanted`; all that are free when None. Ray hears of CPUs that were given back a
    little later, so it is asked for a while."""
    most = wanted or int(ray.cluster_resources().get("CPU", 0))
    until = time.monotonic() + _PATIENCE
    while True:
        free = int(ray.available_resources().get("CPU", 0))
        if free >= most or time.monotonic() > until:
            return min(free, most)
        time.sleep(0.1)


def _started(ray: Any, done: Any, starting: dict[Any, Any]) -> Any:
    _result(ray, done)  # raises what its constructor raised
    return starting.pop(done)


def _check_reachable(address: str) -> None:
    """Somebody listens at host:port; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return  # "auto", or a name that Ray knows
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as cause:
        raise SimulatorError(f"--ray {address}: no cluster answers there: {cause}") from cause


def _result(ray: Any, done: Any) -> EpisodeResult:
    try:
        found: EpisodeResult = ray.get(done)
    except ray.exceptions.RayError as cause:
        # The cause of a task's error is the error itself, as it was raised over there.
        reason = getattr(cause, "cause", None) or cause
        raise SimulatorError(
            f"an episode failed on the cluster: {reason}. Is the policy at the same path on every "
            "machine, and smolvla-edge[sim] installed there?"
        ) from cause
    return found

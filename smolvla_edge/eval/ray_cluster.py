"""The same episodes on a Ray cluster that is there already (extra `ray`).

Each actor is one process with one thread, as each worker of one machine is. The policy's folder
must be at the same path on every machine; smolvla-edge with its extra sim must be installed there.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from typing import Any

from smolvla_edge.errors import MissingExtraError, SimulatorError
from smolvla_edge.eval.episode import EpisodeResult
from smolvla_edge.eval.runner import Job, Play, Setting, Worker
from smolvla_edge.eval.sides import Side

_PATIENCE = 5.0  # seconds for a connection


def play_on(address: str, workers: int | None) -> Play:
    """What `evaluate` takes as `play`: episodes on the cluster at `address` ("auto": this one's).

    workers: actors; as many as the cluster has CPUs when None. Raises MissingExtraError without
    ray, SimulatorError for a cluster that cannot be reached.
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
    count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def play(side: Side, setting: Setting, jobs: Sequence[Job]) -> Iterator[EpisodeResult]:
        actor: Any = ray.remote(num_cpus=1)(Worker)
        actors = [actor.remote(side, setting) for _ in range(min(count, len(jobs)))]
        waiting = list(reversed(jobs))
        running: dict[Any, Any] = {}
        try:
            for one in actors:
                running[one.run.remote(waiting.pop())] = one
            while running:
                (done,), _ = ray.wait(list(running), num_returns=1)
                one = running.pop(done)
                if waiting:
                    running[one.run.remote(waiting.pop())] = one
                yield _result(ray, done)
        finally:
            for one in actors:
                ray.kill(one)

    return play


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

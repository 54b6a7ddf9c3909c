"""Many episodes on several processes; what is done is kept, so that an evaluation can go on.

A result file is one line of JSON an episode, under a first line that says what was judged. It is
never mixed: another policy, plan, setting, definition of the tasks or version (of this package or
of the simulator) is refused.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from smolvla_edge.bundle import file_chunks, is_bundle, read_bundle
from smolvla_edge.errors import SimulatorError
from smolvla_edge.eval.episode import EpisodeResult, run_episode
from smolvla_edge.eval.metaworld import STEP_LIMIT, Metaworld
from smolvla_edge.eval.sides import Side
from smolvla_edge.eval.tasks import TASKS
from smolvla_edge.version import __version__

Progress = Callable[[int, int], None]
Job = tuple[str, int]  # task, seed


@dataclass(frozen=True)
class Setting:
    """Everything but the side that decides an episode."""

    width: int = 128
    height: int = 128
    step_limit: int = STEP_LIMIT


Play = Callable[[Side, Setting, Sequence[Job]], Iterator[EpisodeResult]]
"""Plays jobs somewhere and yields their results as they come, in any order."""


class Worker:
    """One process's policy and its simulators, opened once."""

    def __init__(self, side: Side, setting: Setting) -> None:
        self.side, self.setting = side, setting
        self.policy, self.n_action_steps = side.open()
        self._worlds: dict[str, Metaworld] = {}

    def run(self, job: Job) -> EpisodeResult:
        task, seed = job
        if task not in self._worlds:
            self._worlds[task] = Metaworld(TASKS[task], self.setting.width, self.setting.height)
        return run_episode(
            self.policy,
            self._worlds[task],
            seed,
            self.n_action_steps,
            instruction=self.side.told(TASKS[task]),
            blank=self.side.blank,
            step_limit=self.setting.step_limit,
        )

    def close(self) -> None:
        for world in self._worlds.values():
            world.close()


def fingerprint(policy: str) -> str:
    """SHA-256 of what a policy is made of: a bundle's digest, or a checkpoint's own files.

    Raises SimulatorError for anything but a folder.
    """
    folder = Path(policy)
    if is_bundle(folder):
        return read_bundle(folder).digest
    if not folder.is_dir():
        raise SimulatorError(
            f"{policy}: expected a folder, to know its results by: convert it to a bundle first"
        )
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.json")) + sorted(folder.rglob("*.safetensors")):
        found.update(str(path.relative_to(folder)).encode())
        for chunk in file_chunks(path):
            found.update(chunk)
    return found.hexdigest()


_worker: Worker | None = None


def _open_worker(side: Side, setting: Setting) -> None:
    global _worker
    _worker = Worker(side, setting)


def _run_in_worker(job: Job) -> EpisodeResult:
    if _worker is None:
        raise SimulatorError("expected a process that `_open_worker` has prepared")
    return _worker.run(job)


def evaluate(
    side: Side,
    jobs: Sequence[Job],
    setting: Setting,
    *,
    workers: int = 1,
    file: Path | None = None,
    progress: Progress = lambda done, total: None,
    play: Play | None = None,
) -> list[EpisodeResult]:
    """The results of `jobs` in their order; those in `file` are not run again.

    workers: processes, each with one thread. play: play episodes elsewhere instead (a cluster).
    Raises what loading the policy or the simulator raises, SimulatorError for a file of something
    else and for a process that died.
    """
    kept = _Kept(file, side, setting)
    missing = [job for job in jobs if job not in kept.results]
    done = len(jobs) - len(missing)
    progress(done, len(jobs))
    if missing:
        if play is None:
            play = _play_here if workers == 1 else partial(_play_in_processes, workers)
        for result in play(side, setting, missing):
            kept.add(result)
            done += 1
            progress(done, len(jobs))
    return [kept.results[job] for job in jobs]


def _play_here(side: Side, setting: Setting, jobs: Sequence[Job]) -> Iterator[EpisodeResult]:
    worker = Worker(side, setting)
    try:
        yield from map(worker.run, jobs)
    finally:
        worker.close()


def _play_in_processes(
    workers: int, side: Side, setting: Setting, jobs: Sequence[Job]
) -> Iterator[EpisodeResult]:
    side.open()  # in this process first: its refusal is worth more than a broken pool
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),  # the core's threads do not survive fork
        initializer=_open_worker,
        initargs=(side, setting),
    )
    try:
        for future in as_completed([pool.submit(_run_in_worker, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as cause:
        raise SimulatorError(
            "a process died (out of memory, or a driver's fault); episodes that were done are kept "
            "where --out says. Try again with fewer --workers"
        ) from cause
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Kept:
    """Results by job, on disk as they come when there is a file."""

    def __init__(self, file: Path | None, side: Side, setting: Setting) -> None:
        self.results: dict[Job, EpisodeResult] = {}
        self._file = file
        if file is None:
            return
        header = {
            "smolvla_edge": __version__,
            "side": side.to_json(),
            "policy": fingerprint(side.policy),
            "setting": vars(setting),
            "tasks": hashlib.sha256(repr(sorted(TASKS.items())).encode()).hexdigest(),
            "simulator": {name: version(name) for name in ("metaworld", "mujoco")},
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if not text.endswith("\n"):
            # A run that was killed left half a line behind: that episode is played again.
            text = text[: text.rfind("\n") + 1]
            file.write_text(text, encoding="utf-8")
        lines = text.splitlines()
        if not lines:
            file.write_text(json.dumps(header) + "\n", encoding="utf-8")
            return
        if _parsed(lines[:1], file) != [header]:
            raise SimulatorError(
                f"{file} holds the results of something else ({lines[0]:.300}); name another place "
                "with --out"
            )
        for raw in _parsed(lines[1:], file):
            self.add(EpisodeResult.from_json(raw), keep=False)

    def add(self, result: EpisodeResult, keep: bool = True) -> None:
        self.results[result.task, result.seed] = result
        if keep and self._file is not None:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(result.to_json()) + "\n")


def _parsed(lines: Iterable[str], file: Path) -> list[Any]:
    found = []
    for number, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise SimulatorError(
                f"{file}: line {number + 1} of the results is damaged; remove it and go on"
            ) from None
    return found

"""Scripted demonstrations of the ten tasks, as a LeRobotDataset v3.0 folder.

    python -m tools.demo_policy.generate OUT --workers 2
    python -m tools.demo_policy.generate OUT --policy POLICY

Meta-World's own expert of each task acts from the simulator's state. A third of the demonstrations
are clean; a third carry noise on every action; in a third the hand is now and then pushed away for
a while. What is recorded is always what the expert wanted to do in that moment, so that the data
show how to come back (DART, Laskey et al. 2017). Only episodes that were solved are kept.

An interrupted run goes on where it stopped; one of other layouts or of another policy is refused.
The same arguments give the same data set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from smolvla_edge.cli import output
from smolvla_edge.dataset import DatasetWriter
from smolvla_edge.dataset.arrow import encode_png
from smolvla_edge.dataset.layout import Feature
from smolvla_edge.eval.metaworld import CONTROL_RATE, Metaworld
from smolvla_edge.eval.runner import fingerprint
from smolvla_edge.eval.sides import Side
from smolvla_edge.eval.tasks import TASKS, Task
from smolvla_edge.policy import Policy
from smolvla_edge.policy_config import ACTION, STATE
from tools.demo_policy.recipe import (
    CAMERA,
    DEMONSTRATIONS,
    ENVIRONMENT,
    IMAGE_SIDE,
    MORE_DEMONSTRATIONS,
    STEERED_DEMONSTRATIONS,
)

FEATURES = {
    CAMERA: Feature("image", (IMAGE_SIDE, IMAGE_SIDE, 3), ["height", "width", "channels"]),
    STATE: Feature("float32", (4,), ["x", "y", "z", "gripper"]),
    ENVIRONMENT: Feature("float32", (39,), None),
    ACTION: Feature("float32", (4,), ["dx", "dy", "dz", "gripper"]),
}
STEPS = 200  # an undisturbed expert takes at most 120; a disturbed one comes back later
HOLD = 4  # steps recorded after success
STYLES = ("clean", "noisy", "pushed")
STEERED = "steered"  # by a policy, at first
STEERED_STEPS = (10, 120)  # nearly all successes of a policy take at most 110
FIRST_SEED = 1_000_000  # evaluations begin at 0, validation at 500_000
SEEDS = 10_000  # of each task; the second half is for steered ones
LOG = "meta/demonstrations.jsonl"


@dataclass(frozen=True)
class Demonstration:
    task: str
    seed: int
    style: str
    rows: dict[str, Any]
    solved: bool


@cache
def _environment(task: str) -> tuple[Metaworld, Any]:
    environment = Metaworld(TASKS[task], IMAGE_SIDE, IMAGE_SIDE)
    from metaworld.policies import ENV_POLICY_MAP

    return environment, ENV_POLICY_MAP[TASKS[task].environment]


@cache
def _policy(folder: str) -> tuple[Policy, int]:
    return Side(folder).open(threads=1)


def demonstrate(job: tuple[str, int, str | None]) -> Demonstration:
    """One attempt of the expert, alone or after a policy, at (task, seed, policy)."""
    task, seed, policy = job
    environment, expert_of = _environment(task)
    random = np.random.default_rng([seed, 1])
    style = STEERED if policy else STYLES[seed % len(STYLES)]
    environment.reset(seed)
    expert = expert_of()
    rows: dict[str, Any] = {name: [] for name in FEATURES}
    disturbance = _steer(policy, environment, seed, random) if policy else _disturb(style, random)
    left = None
    for _ in range(STEPS):
        wanted = np.clip(expert.get_action(environment.everything), -1, 1).astype(np.float32)
        rows[CAMERA].append(encode_png(environment.picture()))
        rows[STATE].append(environment.state)
        rows[ENVIRONMENT].append(environment.everything.astype(np.float32))
        rows[ACTION].append(wanted)
        solved = environment.step(next(disturbance)(wanted))
        if left is None and solved:
            left = HOLD
        if left is not None:
            left -= 1
            if left < 0:
                break
    return Demonstration(task, seed, style, rows, left is not None)


def _disturb(style: str, random: np.random.Generator) -> Iterator[Any]:
    """For each step what happens to the wanted action on its way to the robot."""
    if style == "clean":
        while True:
            yield lambda action: action
    if style == "noisy":
        size = random.uniform(0.1, 0.5)
        noise = np.zeros(3)
        while True:
            noise = 0.7 * noise + size * random.standard_normal(3)
            yield lambda action, noise=noise: action + np.append(noise, 0).astype(np.float32)
    while True:
        for _ in range(random.integers(5, 40)):
            yield lambda action: action
        push = random.uniform(-1, 1, 3)
        loose = random.random() < 0.1  # now and then the gripper opens too
        for _ in range(random.integers(4, 14)):
            yield lambda action, push=push, loose=loose: np.append(
                push, -1.0 if loose else action[3]
            ).astype(np.float32)


def _steer(
    folder: str, environment: Metaworld, seed: int, random: np.random.Generator
) -> Iterator[Any]:
    """As `_disturb`: for a while what the policy does, then what the expert wants."""
    policy, count = _policy(folder)
    policy.reset(seed=seed)
    steps = random.integers(*STEERED_STEPS)
    for step in range(steps):
        if step % count == 0:
            seen = {CAMERA: environment.picture()}
            chunk = policy.predict(seen, environment.state, environment.task.instruction)
        yield lambda action, own=chunk.actions[step % count]: own
    while True:
        yield lambda action: action


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_policy.generate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("out", type=Path, help="the folder of the data set")
    parser.add_argument(
        "--demonstrations", type=int, help="of each task; the recipe's numbers unless said"
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--policy", type=Path, help="add episodes that this policy begins")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    writer = DatasetWriter(options.out, int(CONTROL_RATE), FEATURES, robot_type="sawyer")
    policy = None if options.policy is None else str(options.policy)
    alone = {**dict.fromkeys(TASKS, DEMONSTRATIONS), **MORE_DEMONSTRATIONS}
    planned = STEERED_DEMONSTRATIONS if policy else alone
    wanted = {task: options.demonstrations or planned.get(task, 0) for task in options.tasks}
    total = sum(wanted.values())
    log = _read_log(options.out, writer.episodes)
    origin = {task: {"layout": _digest(TASKS[task])} for task in options.tasks}
    if policy:
        origin = {task: {**found, "policy": fingerprint(policy)} for task, found in origin.items()}
    context = multiprocessing.get_context("spawn")
    with output.progress("demonstrating", unit_bytes=False) as report, writer:
        for task in options.tasks:
            steered = [(entry["style"] == STEERED) == (policy is not None) for entry in log]
            done = [e for e, ours in zip(log, steered, strict=True) if ours and e["task"] == task]
            if any({k: e.get(k) for k in origin[task]} != origin[task] for e in done):
                sys.exit(f"{options.out}: its episodes of {task} are of other layouts or of "
                         "another policy: name another folder")  # fmt: skip
            first = first_seed(task) + (SEEDS // 2 if policy else 0)
            seed = max((entry["seed"] for entry in done), default=first - 1) + 1
            kept = len(done)
            if kept >= wanted[task]:
                continue
            with context.Pool(options.workers) as pool:  # a pool a task: contexts go with it
                jobs = ((task, s, policy) for s in range(seed, first + SEEDS // 2))
                for found in pool.imap(demonstrate, jobs):
                    report(writer.episodes, total, task)
                    if not found.solved:
                        continue
                    phrases = TASKS[task].instructions
                    writer.add(found.rows, phrases[found.seed // len(STYLES) % len(phrases)])
                    entry = {"task": task, "seed": found.seed, "style": found.style,
                             "frames": len(found.rows[ACTION]), **origin[task]}  # fmt: skip
                    with (options.out / LOG).open("a") as stream:
                        stream.write(json.dumps(entry) + "\n")
                    kept += 1
                    if kept == wanted[task]:
                        break
                pool.terminate()
            writer.flush()
    print(f"{writer.episodes} episodes, {writer.frames} frames in {options.out}")


def _digest(task: Task) -> str:
    return hashlib.sha256(repr(task).encode()).hexdigest()[:16]


def first_seed(task: str) -> int:
    return FIRST_SEED + SEEDS * list(TASKS).index(task)


def _read_log(folder: Path, episodes: int) -> list[dict[str, Any]]:
    """Where the episodes on disk come from; lines of episodes that were lost are dropped."""
    path = folder / LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.is_file() else []
    if len(lines) < episodes:
        sys.exit(f"{path}: expected {episodes} lines, found {len(lines)}: begin anew")
    path.write_text("".join(line + "\n" for line in lines[:episodes]))
    return [json.loads(line) for line in lines[:episodes]]


if __name__ == "__main__":
    main()

"""Streams of camera frames from a closed loop: what a policy sees while it works.

The demo policy plays episodes in the simulator (extra sim) and chooses the actions from its own
small pictures; beside them its camera, which stands still, and the one on the hand are drawn in the
size of a webcam. One frame of each for every chunk of actions. Kept in the user's cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

SIZE = (640, 480)  # width, height
CAMERAS = {"static": "corner2", "gripper": "gripperPOV"}
EPISODES = (("drawer-open", 900), ("push", 901), ("window-close", 902))  # task, seed
Stream = Mapping[str, np.ndarray]


def closed_loop(kept: Path, n_action_steps: int = 4) -> list[Stream]:
    """A stream an episode: {camera: uint8 [frames, height, width, 3]}, `n_action_steps` control
    steps (an 80th of a second each) from one frame to the next. kept: a folder."""
    streams: list[Stream] = []
    for task, seed in EPISODES:
        file = kept / f"frames-{task}-{seed}-{n_action_steps}.npz"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name("partial-" + file.name)
            np.savez(partial, **_played(task, seed, n_action_steps))
            partial.rename(file)
        with np.load(file, allow_pickle=False) as archive:
            streams.append({camera: archive[camera] for camera in CAMERAS})
    return streams


def _played(task: str, seed: int, n_action_steps: int) -> dict[str, np.ndarray]:
    from smolvla_edge.cli.demo import shipped_policy
    from smolvla_edge.eval.episode import run_episode
    from smolvla_edge.eval.metaworld import Metaworld
    from smolvla_edge.eval.sides import Side
    from smolvla_edge.eval.tasks import TASKS

    policy, _ = Side(str(shipped_policy())).open()
    world = Metaworld(TASKS[task], 128, 128)
    frames: dict[str, list[np.ndarray]] = {camera: [] for camera in CAMERAS}

    def watch(state: np.ndarray, chunk: object, row: int) -> None:
        if row == 0:
            for camera, name in CAMERAS.items():
                frames[camera].append(world.picture(SIZE, name))

    try:
        run_episode(policy, world, seed, n_action_steps, watch=watch)
    finally:
        world.close()
    return {camera: np.stack(seen) for camera, seen in frames.items()}

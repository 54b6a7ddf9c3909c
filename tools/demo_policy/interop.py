"""The demo policy and its data in LeRobot's own code, beside ours: make interop.

    python -m tools.demo_policy.interop CHECKPOINT DATASET --lerobot benchmarks/rivals/lerobot/.venv

LeRobot 0.4.4 (float32) opens the data set with its LeRobotDataset, loads the checkpoint with its
SmolVLAPolicy and its processors, and predicts from 100 recorded observations and given noises; the
actions must be ours to 1e-4 of the actions' range.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from smolvla_edge.dataset import read_dataset
from smolvla_edge.policy import load
from smolvla_edge.policy_config import ACTION
from tools.demo_policy.recipe import CAMERA

WORKER = Path(__file__).resolve().parents[2] / "benchmarks" / "rivals" / "lerobot"
ALLOWED = 1e-4  # of the recorded actions' range


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_policy.interop", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--lerobot", type=Path, default=WORKER / ".venv")
    parser.add_argument("--observations", type=int, default=100)
    options = parser.parse_args(arguments)
    recorded = read_dataset(options.dataset)
    policy = load(options.checkpoint)
    frames, states, tasks, noises, ours = [], [], [], [], []
    random = np.random.default_rng(0)
    total = recorded.info.frames
    wanted = set(np.linspace(0, total - 1, options.observations).round().astype(int).tolist())
    actions = []
    for episode in recorded.episodes:
        actions.append(recorded.columns(episode.index, [ACTION])[ACTION])
        if not any(episode.first + i in wanted for i in range(episode.length)):
            continue
        for number, frame in enumerate(recorded.frames(episode.index)):
            if episode.first + number not in wanted:
                continue
            shape = (policy.model.chunk_size, policy.model.max_action_dim)
            noise = random.standard_normal(shape).astype(np.float32)
            chunk = policy.predict(
                {CAMERA: frame.images[CAMERA]}, frame.state, frame.task, noise=noise
            )
            frames.append(frame.images[CAMERA])
            states.append(frame.state)
            tasks.append(frame.task)
            noises.append(noise)
            ours.append(chunk.actions)
    first = next(recorded.frames(0))
    *_, last = recorded.frames(len(recorded.episodes) - 1)
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(given, frames=np.stack(frames), states=np.stack(states), tasks=np.array(tasks),
                 noise=np.stack(noises))  # fmt: skip
        paths = [str(path.resolve()) for path in (options.checkpoint, options.dataset, given, out)]
        python = options.lerobot.resolve() / "bin" / "python"
        subprocess.run([str(python), "interop_worker.py", *paths], cwd=WORKER, check=True)
        with np.load(out, allow_pickle=False) as archive:
            theirs = {name: archive[name] for name in archive.files}
    span = np.ptp(np.concatenate(actions).astype(np.float64), axis=0)
    error = np.abs(np.stack(ours).astype(np.float64) - theirs["actions"]) / span
    print(f"{len(ours)} observations: largest difference {error.max():.2e} of the actions' range, "
          f"mean {error.mean():.2e}; allowed {ALLOWED:.0e}")  # fmt: skip
    counts = [len(recorded.episodes), total, len(recorded.tasks)]
    same = theirs["counts"].tolist() == counts
    for name, frame in (("first", first), ("last", last)):
        image = np.round(theirs[f"{name}.image"].transpose(1, 2, 0) * 255).astype(np.uint8)
        same &= np.array_equal(image, frame.images[CAMERA])
        same &= np.array_equal(theirs[f"{name}.state"], frame.state)
        same &= np.array_equal(theirs[f"{name}.action"], frame.action)
        same &= str(theirs[f"{name}.task"]) == frame.task
    print(f"LeRobotDataset reads {counts[0]} episodes, {counts[1]} frames, {counts[2]} "
          f"instructions: {'the same' if same else 'NOT THE SAME'}")  # fmt: skip
    return int(not (same and error.max() <= ALLOWED))


if __name__ == "__main__":
    sys.exit(main())

"""How far a policy without eyes comes, estimated before any is trained.

    python -m tools.demo_policy.blind

A small network learns the expert's chunks from the hand's position and gripper alone, and plays
unseen layouts in closed loop. A task that it solves often needs no eyes: its layout is too narrow.
The measure that counts is the trained policy with a grey picture (`eval --blank`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from smolvla_edge.cli import output
from smolvla_edge.eval.metaworld import STEP_LIMIT, Metaworld
from smolvla_edge.eval.tasks import TASKS
from smolvla_edge.policy_config import ACTION, STATE
from tools.demo_policy.generate import demonstrate, first_seed
from tools.demo_policy.recipe import CHUNK, IMAGE_SIDE, N_ACTION_STEPS

FIRST_SEED = 500_000  # validation's: what guides the layouts does not judge them
DEMONSTRATIONS = 80
WIDTH = 256
STEPS, BATCH, RATE = 1500, 512, 1e-3

Chunks = Callable[[np.ndarray], np.ndarray]


def learn(task: str) -> Chunks:
    """state float32 [4] -> actions float32 [chunk, 4], from solved demonstrations."""
    states, chunks, kept, seed = [], [], 0, first_seed(task)
    while kept < DEMONSTRATIONS:
        found = demonstrate((task, seed, None))
        seed += 1
        if not found.solved:
            continue
        kept += 1
        actions = np.array(found.rows[ACTION])
        ahead = np.concatenate([actions, np.repeat(actions[-1:], CHUNK, 0)])
        states += list(found.rows[STATE])
        chunks += [ahead[i : i + CHUNK].ravel() for i in range(len(actions))]
    x, y = torch.tensor(np.array(states)), torch.tensor(np.array(chunks))
    mean, std = x.mean(0), x.std(0) + 1e-4
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(4, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(),
        nn.Linear(WIDTH, y.shape[1]),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-4)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (BATCH,))
        loss = ((network((x[rows] - mean) / std) - y[rows]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def predict(state: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network((torch.tensor(state) - mean) / std).numpy().reshape(CHUNK, -1)

    return predict


def play(world: Metaworld, seed: int, predict: Chunks) -> bool:
    world.reset(seed)
    for step in range(STEP_LIMIT):
        row = step % N_ACTION_STEPS
        if row == 0:
            chunk = predict(world.state)
        if world.step(chunk[row]):
            return True
    return False


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_policy.blind", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--episodes", type=int, default=100)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for task in options.tasks:
        with output.busy(f"learning {task} without eyes"):
            predict = learn(task)
        world = Metaworld(TASKS[task], IMAGE_SIDE, IMAGE_SIDE)
        solved = sum(play(world, FIRST_SEED + i, predict) for i in range(options.episodes))
        world.close()
        print(f"{task:14s} {solved} of {options.episodes}", flush=True)


if __name__ == "__main__":
    main()

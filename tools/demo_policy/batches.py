"""Frames of the demonstrations in memory, and batches of them: random, shifted and recoloured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smolvla_edge.dataset import read_dataset
from smolvla_edge.eval.tasks import TASKS
from smolvla_edge.policy_config import ACTION, STATE
from tools.demo_policy.recipe import CAMERA, CHUNK, ENVIRONMENT, IMAGE_SIDE, LEROBOT_WORDS

Progress = Callable[[int, int, str], None]

SHIFT = 4  # pixels in each direction
COLOUR = 0.15  # brightness, contrast and each channel


@dataclass
class Demonstrations:
    """Every frame of a dataset, in order of the episodes.

    frames uint8 [n, 3, side, side] (mapped from a file); state and action float32 [n, 4];
    environment float32 [n, d]; task int64 [n] into `tasks`, the recorded instructions; last int64
    [n], the number of the episode's last frame.
    """

    frames: Tensor
    state: Tensor
    action: Tensor
    environment: Tensor
    task: Tensor
    last: Tensor
    tasks: list[str]

    @property
    def phrases(self) -> list[str]:
        """What may be said: each recorded instruction, then LeRobot's words for each of them."""
        said = {words: task.lerobot for task in TASKS.values() for words in task.instructions}
        return [*self.tasks, *(said.get(words, words) for words in self.tasks)]


def load(folder: Path, cache: Path, progress: Progress) -> Demonstrations:
    """The dataset in `folder`; its decoded frames are kept in `cache` for the next time."""
    recorded = read_dataset(folder)
    total = recorded.info.frames
    path = cache / f"frames-{total}.npy"
    shape = (total, 3, IMAGE_SIDE, IMAGE_SIDE)
    fresh = not path.is_file()
    partial = path.with_suffix(".partial") if fresh else path
    cache.mkdir(parents=True, exist_ok=True)
    frames = np.lib.format.open_memmap(
        partial, "w+" if fresh else "r+", dtype=np.uint8, shape=shape if fresh else None
    )
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (STATE, ACTION, ENVIRONMENT, "task")}
    last = np.empty(total, np.int64)
    for episode in recorded.episodes:
        columns = recorded.columns(episode.index, [STATE, ACTION, ENVIRONMENT, "task_index"])
        for name in (STATE, ACTION, ENVIRONMENT):
            parts[name].append(columns[name].astype(np.float32))
        parts["task"].append(columns["task_index"][:, 0])
        end = episode.first + episode.length
        last[episode.first : end] = end - 1
        if fresh:
            for number, frame in enumerate(recorded.images(episode.index, CAMERA)):
                frames[episode.first + number] = frame.transpose(2, 0, 1)
            progress(end, total, "decoding frames")
    if fresh:
        frames.flush()
        partial.rename(path)
    joined = {name: torch.from_numpy(np.concatenate(values)) for name, values in parts.items()}
    return Demonstrations(
        frames=torch.from_numpy(frames),
        state=joined[STATE],
        action=joined[ACTION],
        environment=joined[ENVIRONMENT],
        task=joined["task"],
        last=torch.from_numpy(last),
        tasks=recorded.tasks,
    )


def draw(
    data: Demonstrations, count: int, random: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """`count` random moments -> (their numbers, float pixels [-1, 1] and chunks of actions).

    "task" counts the recorded instructions, "words" counts `data.phrases`.
    """
    rows = torch.randint(len(data.state), (count,), generator=random)
    ahead = rows[:, None] + torch.arange(CHUNK)
    end = data.last[rows][:, None]
    others = torch.rand(count, generator=random) < LEROBOT_WORDS
    return rows, {
        "pixels": augment(data.frames[rows], random),
        "state": data.state[rows],
        "actions": data.action[ahead.minimum(end)],
        "is_pad": ahead > end,
        "task": data.task[rows],
        "words": data.task[rows] + len(data.tasks) * others,
        "environment": data.environment[rows],
    }


def augment(frames: Tensor, random: torch.Generator) -> Tensor:
    """uint8 [n, 3, h, w] -> float32 in [-1, 1], each frame moved and recoloured by its own draw.

    A moved frame repeats its edge.
    """
    count, _, height, width = frames.shape
    moves = torch.randint(-SHIFT, SHIFT + 1, (count, 2), generator=random)
    rows = (torch.arange(height) + moves[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width) + moves[:, 1:]).clamp(0, width - 1)
    moved = torch.stack(
        [frame[:, y][:, :, x] for frame, y, x in zip(frames, rows, columns, strict=True)]
    )

    def factor(channels: int) -> Tensor:
        uniform = torch.rand(count, channels, 1, 1, generator=random)
        return 1 + COLOUR * (2 * uniform - 1)

    x = moved.float().div_(255.0).mul_(factor(3) * factor(1))
    mean = x.mean((1, 2, 3), keepdim=True)
    return ((x - mean) * factor(1) + mean).clamp_(0, 1).mul_(2).sub_(1)

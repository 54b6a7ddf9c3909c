"""Open loop: chunks beside recorded actions, in robot units, and two settings beside each other.

What a policy would have done at a recorded moment may differ from what was done and be as good, so
an error against the recording says little by itself. The difference between two settings on the
same moments and noises says what the second setting changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.dataset import RecordedDataset
from smolvla_edge.errors import DatasetError, InputError
from smolvla_edge.eval.sides import GREY, LEROBOT, OTHER, Side
from smolvla_edge.policy_config import ACTION

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Moments:
    """Which recorded frames are looked at: every `every`-th of the chosen episodes."""

    dataset: RecordedDataset
    episodes: Sequence[int]
    every: int

    def __post_init__(self) -> None:
        if self.every < 1 or not self.episodes:
            raise DatasetError(
                f"expected some episodes and every >= 1, got {len(self.episodes)} episodes and "
                f"every {self.every}"
            )

    def count(self) -> int:
        lengths = (self.dataset.episodes[e].length for e in self.episodes)
        return sum(-(-length // self.every) for length in lengths)


@dataclass(frozen=True)
class Chunks:
    """Actions at each moment, robot units: predicted [n, h, d]; recorded [n, h, d], NaN past the
    end of an episode; the actions' recorded range [d]."""

    predicted: NDArray[np.float32]
    recorded: NDArray[np.float32]
    span: NDArray[np.float64]
    latency_ms: NDArray[np.float64]


def predict_all(
    side: Side,
    moments: Moments,
    *,
    cameras: Mapping[str, str] | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Chunks:
    """The policy's chunks at the recorded moments, moment i from the noise of seed + i.

    cameras: {the dataset's name: the policy's}, where they differ. Raises DatasetError when the
    dataset lacks a camera, or its widths are not the policy's; InputError for words that are those
    of a task of the simulator.
    """
    if side.instruction in (OTHER, LEROBOT):
        raise InputError(
            f"{side.instruction}: expected the words themselves: a recording has no task"
        )
    policy, _ = side.open(threads)
    names = match_cameras(moments.dataset, policy.contract.robot_cameras(), cameras or {})
    rows = policy.plan.rows(policy.model.chunk_size)
    predicted: list[NDArray[np.float32]] = []
    recorded, latency, every_action = [], [], []
    total = moments.count()
    for episode in moments.episodes:
        policy.reset()  # a token cache begins anew
        actions = moments.dataset.columns(episode, [ACTION])[ACTION].astype(np.float32)
        if actions.shape[1] != policy.contract.action_dim:
            raise DatasetError(
                f"{ACTION}: expected {policy.contract.action_dim} numbers, the dataset has "
                f"{actions.shape[1]}"
            )
        every_action.append(actions)
        for number, frame in enumerate(moments.dataset.frames(episode, list(names))):
            if number % moments.every:
                continue
            images = {
                names[name]: np.full_like(picture, GREY) if side.blank else picture
                for name, picture in frame.images.items()
            }
            task = side.instruction or frame.task
            chunk = policy.predict(images, frame.state, task, seed=seed + len(predicted))
            predicted.append(chunk.actions)
            latency.append(chunk.timings["total"])
            ahead = np.full((rows, actions.shape[1]), np.nan, np.float32)
            there = actions[number : number + rows]
            ahead[: len(there)] = there
            recorded.append(ahead)
            progress(len(predicted), total)
    joined = np.concatenate(every_action).astype(np.float64)
    return Chunks(
        np.stack(predicted), np.stack(recorded), np.ptp(joined, axis=0), np.array(latency)
    )


def error_table(
    chunks: Chunks, against: NDArray[np.float32], n_action_steps: int
) -> dict[str, Any]:
    """predicted less `against` [n, h, d] over the executed rows and over all, JSON-able.

    Root mean square, mean of absolutes and maximum in robot units for each action, and the root
    mean square as a share of the recorded range.
    """
    result: dict[str, Any] = {"moments": len(chunks.predicted)}
    rows = min(chunks.predicted.shape[1], against.shape[1])
    for name, count in (("executed", min(n_action_steps, rows)), ("chunk", rows)):
        error = (chunks.predicted[:, :count] - against[:, :count]).astype(np.float64)
        rms = np.sqrt(np.nanmean(error**2, axis=(0, 1)))
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(chunks.span > 0, rms / chunks.span, 0.0)
        result[name] = {
            "rows": count,
            "rms": rms.tolist(),
            "mean": np.nanmean(np.abs(error), axis=(0, 1)).tolist(),
            "max": np.nanmax(np.abs(error), axis=(0, 1)).tolist(),
            "rms_of_range": share.tolist(),
        }
    return result


def match_cameras(
    dataset: RecordedDataset, wanted: Sequence[str], cameras: Mapping[str, str]
) -> dict[str, str]:
    """{the dataset's camera: the policy's} for every camera of the policy."""
    names = {cameras.get(name, name): name for name in dataset.info.cameras}
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DatasetError(
            f"the policy sees {', '.join(wanted)}; the dataset has "
            f"{', '.join(dataset.info.cameras) or 'no camera'}. Name the same camera with "
            f"--rename DATASET={missing[0]}"
        )
    return {names[name]: name for name in wanted}

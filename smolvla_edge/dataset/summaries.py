"""Statistics of a feature over an episode and over a dataset, as LeRobot stores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Summary = dict[str, NDArray[np.float64]]
"""min, max, mean, std (of the population) and count; a camera's have the shape [3, 1, 1]."""

_IMAGES_LOOKED_AT = 20


def summarize(values: NDArray[np.generic]) -> Summary:
    """Rows [n, ...] of one feature -> statistics over the rows."""
    wide = np.asarray(values, np.float64).reshape(len(values), -1)
    return {
        "min": wide.min(0),
        "max": wide.max(0),
        "mean": wide.mean(0),
        "std": wide.std(0),
        "count": np.array([float(len(wide))]),
    }


def sample(count: int) -> list[int]:
    """Which of an episode's frames its statistics of pictures look at: evenly spread ones."""
    return np.linspace(0, count - 1, min(_IMAGES_LOOKED_AT, count)).astype(int).tolist()


def summarize_images(frames: Sequence[NDArray[np.uint8]]) -> Summary:
    """Frames [height, width, 3] -> statistics of each channel in [0, 1]."""
    summary = summarize(np.stack(frames).reshape(-1, 3) / 255.0)
    shaped = {name: value.reshape(3, 1, 1) for name, value in summary.items() if name != "count"}
    return {**shaped, "count": np.array([float(len(frames))])}


def merge(parts: Sequence[Mapping[str, NDArray[np.float64]]]) -> Summary:
    """Statistics of several parts -> of all their rows together (Chan, Golub, LeVeque 1979)."""
    weight = np.array([float(part["count"][0]) for part in parts])
    means = np.stack([part["mean"] for part in parts])
    variances = np.stack([part["std"] for part in parts]) ** 2
    share = (weight / weight.sum()).reshape(-1, *[1] * (means.ndim - 1))
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean) ** 2)).sum(0)
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": np.array([weight.sum()]),
    }

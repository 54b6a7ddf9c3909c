"""Small recorded datasets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from smolvla_edge.dataset import DatasetWriter
from smolvla_edge.dataset.layout import Feature

CAMERA = "observation.image"
FEATURES = {
    CAMERA: Feature("image", (16, 24, 3), ["height", "width", "channels"]),
    "observation.state": Feature("float32", (4,), ["x", "y", "z", "gripper"]),
    "action": Feature("float32", (3,), None),
}


def rows(length: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        CAMERA: random.integers(0, 256, (length, 16, 24, 3), np.uint8),
        "observation.state": random.standard_normal((length, 4)).astype(np.float32),
        "action": random.standard_normal((length, 3)).astype(np.float32),
    }


def write(folder: Path, lengths: list[int], **options) -> Path:
    """Episodes of these lengths, in turn of two tasks, episode i from seed i."""
    with DatasetWriter(folder, 30, FEATURES, robot_type="arm", **options) as writer:
        for index, length in enumerate(lengths):
            writer.add(rows(length, index), ("open it", "close it")[index % 2])
    return folder


def edit_info(folder: Path, **changes) -> None:
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

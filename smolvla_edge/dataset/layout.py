"""The files of a LeRobotDataset v3.0 folder, and what its info.json says.

    meta/info.json                                   features, fps, counts, path templates
    meta/stats.json                                  statistics of each feature over all frames
    meta/tasks.parquet                               instruction (the index) -> task_index
    meta/episodes/chunk-000/file-000.parquet         one row an episode: where its frames are
    data/chunk-000/file-000.parquet                  one row a frame, many episodes a file
    videos/<camera>/chunk-000/file-000.mp4           cameras of dtype "video", many episodes a file

Cameras of dtype "image" lie in the data files as encoded PNG. Path templates come from a file, so
only the two known placeholders are replaced, and nothing may leave the folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from smolvla_edge.errors import DatasetError
from smolvla_edge.strict_json import read_json_object

VERSION = "v3.0"
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FILES_PER_CHUNK = 1000

# Columns that every frame has, besides the features of the robot.
INDEX_FEATURES: dict[str, dict[str, Any]] = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}

_PLACEHOLDER = re.compile(r"\{(chunk_index|file_index|video_key)(?::0?(\d)d)?\}")


@dataclass(frozen=True)
class Feature:
    """One column of the frames: "image", "video", or a number type with its shape."""

    dtype: str
    shape: tuple[int, ...]
    names: Any = None

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("image", "video")


@dataclass(frozen=True)
class Info:
    """meta/info.json, checked."""

    features: dict[str, Feature]
    fps: float
    episodes: int
    frames: int
    data_path: str
    video_path: str | None
    robot_type: str | None

    @property
    def cameras(self) -> list[str]:
        return [name for name, feature in self.features.items() if feature.is_camera]


def fill(template: str, chunk: int, file: int, video_key: str = "") -> str:
    """A path of this dataset, relative to its folder. DatasetError for one that leaves it."""

    def value(match: re.Match[str]) -> str:
        name, digits = match[1], int(match[2] or 0)
        if name == "video_key":
            return video_key
        return str(chunk if name == "chunk_index" else file).zfill(digits)

    path = _PLACEHOLDER.sub(value, template)
    parts = PurePosixPath(path)
    if "{" in path or parts.is_absolute() or ".." in parts.parts or "\\" in path:
        raise DatasetError(
            f"{INFO}: expected a path inside the folder with {{chunk_index}}, {{file_index}} and "
            f"{{video_key}}, got {template!r:.200}"
        )
    return path


def read_info(folder: Path) -> Info:
    """Raises DatasetError for a folder that is no dataset, or one of another version."""
    path = folder / INFO
    if not path.is_file():
        raise DatasetError(f"{folder}: expected a LeRobotDataset folder with {INFO}, found none")
    raw = read_json_object(path, error=DatasetError)
    version = raw.get("codebase_version")
    if version != VERSION:
        raise DatasetError(
            f"{path}: expected codebase_version {VERSION}, got {version!r:.40}. Convert it with "
            "LeRobot: python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=..."
        )
    features = {name: _feature(name, value, path) for name, value in _features(raw, path).items()}
    return Info(
        features=features,
        fps=_number(raw, "fps", path),
        episodes=int(_number(raw, "total_episodes", path)),
        frames=int(_number(raw, "total_frames", path)),
        data_path=_template(raw, "data_path", DATA, path),
        video_path=None
        if raw.get("video_path") is None
        else _template(raw, "video_path", "", path),
        robot_type=raw.get("robot_type") if isinstance(raw.get("robot_type"), str) else None,
    )


def _features(raw: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    features = raw.get("features")
    if not isinstance(features, dict) or not features:
        raise DatasetError(f"{path}: expected an object of features, got {features!r:.80}")
    return features


def _feature(name: str, raw: Any, path: Path) -> Feature:
    dtype = raw.get("dtype") if isinstance(raw, dict) else None
    shape = raw.get("shape") if isinstance(raw, dict) else None
    good = isinstance(shape, list) and all(type(n) is int and 0 < n < 1 << 16 for n in shape)
    if not isinstance(dtype, str) or not good or not shape:
        raise DatasetError(f"{path}: feature {name!r:.80}: expected a dtype and a shape of numbers")
    return Feature(dtype, tuple(shape), raw.get("names"))


def _number(raw: Mapping[str, Any], key: str, path: Path) -> float:
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise DatasetError(f"{path}: expected a number {key} >= 0, got {value!r:.40}")
    return float(value)


def _template(raw: Mapping[str, Any], key: str, default: str, path: Path) -> str:
    value = raw.get(key, default)
    if not isinstance(value, str):
        raise DatasetError(f"{path}: expected a path template {key}, got {value!r:.80}")
    fill(value, 0, 0, "camera")  # refused now rather than at the first frame
    return value

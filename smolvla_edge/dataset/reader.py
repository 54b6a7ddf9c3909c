"""Reads LeRobotDataset v3.0 folders: one episode at a time, cameras as pictures or as video."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.dataset import layout
from smolvla_edge.dataset.arrow import decode_image, read_table
from smolvla_edge.dataset.video import frames_at
from smolvla_edge.errors import DatasetError
from smolvla_edge.policy_config import ACTION, STATE


@dataclass(frozen=True)
class Frame:
    """One moment: frames uint8 [height, width, 3], state and action float32 in robot units."""

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    task: str
    timestamp: float


@dataclass(frozen=True)
class Episode:
    """Where an episode's frames are."""

    index: int
    length: int
    first: int  # its first frame's number in the dataset
    file: Path
    row: Mapping[str, Any]  # of meta/episodes


class RecordedDataset:
    """A dataset on disk. Nothing but meta/ is read until an episode is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = layout.read_info(folder)
        self.tasks = _read_tasks(folder / layout.TASKS)
        self.episodes = self._read_episodes()

    def columns(self, episode: int, names: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """Vectors of one episode, [length, width] each, by feature; all of them unless named."""
        entry = self._episode(episode)
        wanted = [name for name, f in self.info.features.items() if not f.is_camera]
        table = self._rows(entry, list(names) or wanted)
        return {name: _vectors(table, name, entry.file) for name in table.column_names}

    def images(self, episode: int, camera: str) -> Iterator[NDArray[np.uint8]]:
        """The frames of one camera in one episode, uint8 [height, width, 3]."""
        feature = self.info.features.get(camera)
        if feature is None or not feature.is_camera:
            raise DatasetError(
                f"{camera!r:.80}: expected one of the cameras {', '.join(self.info.cameras)}"
            )
        entry = self._episode(episode)
        if feature.dtype == "video":
            yield from self._video(entry, camera)
            return
        column = self._rows(entry, [camera])[camera]
        for number, cell in enumerate(column.to_pylist()):
            data = cell.get("bytes") if isinstance(cell, dict) else None
            where = f"{entry.file}: {camera}, row {number} of episode {episode}"
            if not isinstance(data, bytes):
                raise DatasetError(f"{where}: expected an encoded picture, found none")
            yield decode_image(data, where)

    def frames(self, episode: int, cameras: Sequence[str] | None = None) -> Iterator[Frame]:
        """The episode's moments in order. `cameras` None is all of them."""
        chosen = self.info.cameras if cameras is None else list(cameras)
        columns = self.columns(episode, [STATE, ACTION, "timestamp", "task_index"])
        streams = [self.images(episode, camera) for camera in chosen]
        for number, pictures in enumerate(_together(streams, len(columns["timestamp"]))):
            yield Frame(
                images=dict(zip(chosen, pictures, strict=True)),
                state=np.asarray(columns[STATE][number], np.float32),
                action=np.asarray(columns[ACTION][number], np.float32),
                task=self._task(int(columns["task_index"][number, 0])),
                timestamp=float(columns["timestamp"][number, 0]),
            )

    def _task(self, index: int) -> str:
        if not 0 <= index < len(self.tasks):
            raise DatasetError(
                f"{self.folder}: task_index {index}: {layout.TASKS} has no such task"
            )
        return self.tasks[index]

    def _episode(self, index: int) -> Episode:
        if not 0 <= index < len(self.episodes):
            raise DatasetError(
                f"{self.folder}: episode {index}: expected 0 to {len(self.episodes) - 1}"
            )
        return self.episodes[index]

    def _rows(self, entry: Episode, names: list[str]) -> Any:
        """A table of these columns with the rows of one episode."""
        import pyarrow.compute as pc

        missing = [name for name in names if name not in self.info.features]
        if missing:
            raise DatasetError(
                f"{self.folder}: expected the features {', '.join(missing)}; it has "
                f"{', '.join(self.info.features)}"
            )
        table = read_table(entry.file, [*dict.fromkeys([*names, "episode_index"])])
        try:
            table = table.filter(pc.equal(table["episode_index"], entry.index)).select(names)
        except (KeyError, ValueError, TypeError) as cause:
            raise DatasetError(f"{entry.file}: expected the columns {names}: {cause}") from cause
        if table.num_rows != entry.length:
            raise DatasetError(
                f"{entry.file}: expected {entry.length} rows of episode {entry.index}, found "
                f"{table.num_rows}"
            )
        return table

    def _video(self, entry: Episode, camera: str) -> Iterator[NDArray[np.uint8]]:
        if self.info.video_path is None:
            raise DatasetError(
                f"{self.folder}: {camera} is a video, and info.json has no video_path"
            )
        key = f"videos/{camera}/"
        chunk, file = (_integer(entry.row, key + name) for name in ("chunk_index", "file_index"))
        start = entry.row.get(key + "from_timestamp")
        if not isinstance(start, float) or not 0 <= start < 1e9:
            raise DatasetError(
                f"{self.folder}: {key}from_timestamp: expected seconds, got {start!r}"
            )
        path = self.folder / layout.fill(self.info.video_path, chunk, file, camera)
        yield from frames_at(path, start, entry.length, self.info.fps)

    def _read_episodes(self) -> list[Episode]:
        folder = self.folder / "meta" / "episodes"
        files = sorted(folder.glob("chunk-*/file-*.parquet"))
        if not files:
            raise DatasetError(f"{folder}: expected the list of episodes, found none")
        entries: list[Episode] = []
        for path in files:
            table = read_table(path)
            # The statistics of an episode are wide and are not needed.
            kept = [name for name in table.column_names if not name.startswith("stats/")]
            for row in table.select(kept).to_pylist():
                chunk, file = (_integer(row, f"data/{name}_index") for name in ("chunk", "file"))
                entries.append(
                    Episode(
                        index=_integer(row, "episode_index"),
                        length=_integer(row, "length"),
                        first=_integer(row, "dataset_from_index"),
                        file=self.folder / layout.fill(self.info.data_path, chunk, file),
                        row=row,
                    )
                )
        entries.sort(key=lambda entry: entry.index)
        if [entry.index for entry in entries] != list(range(self.info.episodes)):
            raise DatasetError(
                f"{folder}: expected episodes 0 to {self.info.episodes - 1}, found {len(entries)}"
            )
        return entries


def read_dataset(folder: str | os.PathLike[str]) -> RecordedDataset:
    """A LeRobotDataset v3.0 folder.

    Raises DatasetError for what is missing, damaged or of another version, MissingExtraError
    without the extra `data`.
    """
    return RecordedDataset(Path(folder))


def _read_tasks(path: Path) -> list[str]:
    table = read_table(path)
    numbers = table.column_names.index("task_index") if "task_index" in table.column_names else -1
    names = [i for i, kind in enumerate(table.schema.types) if str(kind).endswith("string")]
    if numbers < 0 or len(names) != 1:
        raise DatasetError(
            f"{path}: expected a task_index and one column of instructions, got "
            f"{', '.join(table.column_names)}"
        )
    found = dict(zip(table[numbers].to_pylist(), table[names[0]].to_pylist(), strict=True))
    if sorted(found) != list(range(table.num_rows)):
        raise DatasetError(f"{path}: expected the task_index 0 to {table.num_rows - 1}, each once")
    return [str(found[i]) for i in range(table.num_rows)]


def _vectors(table: Any, name: str, file: Path) -> NDArray[Any]:
    try:
        values = np.asarray(table[name].to_pylist())
    except ValueError as cause:
        raise DatasetError(f"{file}: {name}: expected rows of one length: {cause}") from cause
    return values.reshape(len(values), -1)


def _together(
    streams: Sequence[Iterator[NDArray[np.uint8]]], count: int
) -> Iterator[tuple[NDArray[np.uint8], ...]]:
    for _ in range(count):
        yield tuple(next(stream) for stream in streams)


def _integer(row: Mapping[str, Any], key: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or not 0 <= value < 1 << 40:
        raise DatasetError(f"meta/episodes: {key}: expected a count, got {value!r:.40}")
    return value

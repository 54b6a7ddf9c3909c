"""Writes a LeRobotDataset v3.0 folder, episode by episode; an interrupted one can be continued.

Frames are gathered until a data file is full; then the file and all of meta/ are written, each
under a temporary name that is renamed. What is on disk is therefore always a complete dataset of
the episodes that meta/ lists, and a writer that opens it again goes on behind the last of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.dataset import layout
from smolvla_edge.dataset.arrow import decode_image, encode_png, need, read_table
from smolvla_edge.dataset.layout import Feature
from smolvla_edge.dataset.summaries import Summary, merge, sample, summarize, summarize_images
from smolvla_edge.errors import DatasetError

FILE_BYTES = 100 << 20  # of a data file, before parquet's own compression


class DatasetWriter:
    """A dataset that grows.

        with DatasetWriter("folder", 80, {"action": Feature("float32", (4,)), ...}) as writer:
            writer.add({"action": actions, "observation.image": frames}, "open the drawer")

    Cameras are of dtype "image"; other features are float32 or int64 vectors. Raises DatasetError
    for a folder that holds another dataset, and for rows that do not fit the features.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        fps: int,
        features: Mapping[str, Feature],
        *,
        robot_type: str | None = None,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        for name, feature in features.items():
            if feature.dtype not in ("image", "float32", "int64"):
                raise DatasetError(f"{name}: expected image, float32 or int64, got {feature.dtype}")
            if len(feature.shape) != (3 if feature.is_camera else 1):
                raise DatasetError(
                    f"{name}: expected [height, width, 3] of a camera or one length of a vector, "
                    f"got {list(feature.shape)}"
                )
        self.folder = Path(folder)
        self.fps = fps
        self.features = dict(features)
        self.robot_type = robot_type
        self._file_bytes = file_bytes
        self._columns: dict[str, list[Any]] = {}
        self._bytes = 0
        self._file = 0
        self._rows: list[dict[str, Any]] = []  # of meta/episodes
        self._tasks: dict[str, int] = {}
        self._pending = 0  # episodes of the data file that is not written yet
        if (self.folder / layout.INFO).is_file():
            self._continue()

    @property
    def episodes(self) -> int:
        """How many episodes were added, those of an earlier run included."""
        return len(self._rows)

    @property
    def frames(self) -> int:
        return int(self._rows[-1]["dataset_to_index"]) if self._rows else 0

    def add(self, rows: Mapping[str, Sequence[Any] | NDArray[Any]], task: str) -> None:
        """One episode: a row a frame of every feature; frames uint8 or already encoded PNG."""
        length = self._check(rows)
        first = self.frames
        index = len(self._rows)
        number = self._tasks.setdefault(task, len(self._tasks))
        columns: dict[str, Any] = {
            "timestamp": np.arange(length, dtype=np.float32) / np.float32(self.fps),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, index),
            "index": np.arange(first, first + length),
            "task_index": np.full(length, number),
        }
        summaries = {name: summarize(values) for name, values in columns.items()}
        for name, feature in self.features.items():
            if feature.is_camera:
                encoded, summaries[name] = _encode(name, feature, rows[name])
                columns[name] = encoded
                self._bytes += sum(map(len, encoded))
            else:
                values = np.asarray(rows[name], feature.dtype)
                columns[name], summaries[name] = values, summarize(values)
                self._bytes += values.nbytes
        for name, values in columns.items():
            self._columns.setdefault(name, []).extend(values)
        chunk, file = divmod(self._file, layout.FILES_PER_CHUNK)
        row = {
            "episode_index": index,
            "tasks": [task],
            "length": length,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": first,
            "dataset_to_index": first + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for name, summary in summaries.items():
            row |= {f"stats/{name}/{stat}": value.tolist() for stat, value in summary.items()}
        self._rows.append(row)
        self._pending += 1
        if self._bytes >= self._file_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered: a data file, then meta/, which makes it count."""
        if self._pending == 0:
            return
        chunk, file = divmod(self._file, layout.FILES_PER_CHUNK)
        self._write_table(layout.fill(layout.DATA, chunk, file), self._frame_table())
        self._write_meta()
        self._columns, self._bytes, self._pending = {}, 0, 0
        self._file += 1

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.flush()

    def _check(self, rows: Mapping[str, Any]) -> int:
        if rows.keys() != self.features.keys():
            raise DatasetError(
                f"expected the features {', '.join(self.features)}, got {', '.join(rows)}"
            )
        lengths = {name: len(values) for name, values in rows.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise DatasetError(f"expected one row a frame of each feature, got {lengths}")
        for name, feature in self.features.items():
            if feature.is_camera:
                continue
            values = np.asarray(rows[name])
            if values.shape[1:] != feature.shape or not np.isfinite(values).all():
                raise DatasetError(
                    f"{name}: expected finite rows of {list(feature.shape)}, got "
                    f"{list(values.shape)}"
                )
        return next(iter(lengths.values()))

    def _frame_table(self) -> Any:
        pa = need("pyarrow", "pyarrow")
        arrays, names = [], []
        for name, feature in {**self.features, **_index_features()}.items():
            values = self._columns[name]
            if feature.is_camera:
                kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
                array = pa.array([{"bytes": data, "path": None} for data in values], kind)
            elif name in layout.INDEX_FEATURES:
                array = pa.array(np.asarray(values, feature.dtype))
            else:
                flat = pa.array(np.concatenate(values).astype(feature.dtype))
                array = pa.FixedSizeListArray.from_arrays(flat, feature.shape[0])
            arrays.append(array)
            names.append(name)
        return pa.table(arrays, names=names)

    def _write_meta(self) -> None:
        pa = need("pyarrow", "pyarrow")
        self._write_table(layout.fill(layout.EPISODES, 0, 0), pa.Table.from_pylist(self._rows))
        self._write_table(layout.TASKS, _task_table(list(self._tasks)))
        names = [*self.features, *layout.INDEX_FEATURES]
        stats = {name: merge([_summary_of(row, name) for row in self._rows]) for name in names}
        self._write_json(
            layout.STATS,
            {name: {k: v.tolist() for k, v in stat.items()} for name, stat in stats.items()},
        )
        self._write_json(layout.INFO, self._info())  # last: it is what makes a dataset

    def _info(self) -> dict[str, Any]:
        features = {
            name: {"dtype": f.dtype, "shape": list(f.shape), "names": f.names}
            for name, f in self.features.items()
        }
        return {
            "codebase_version": layout.VERSION,
            "robot_type": self.robot_type,
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": len(self._tasks),
            "chunks_size": layout.FILES_PER_CHUNK,
            "data_files_size_in_mb": FILE_BYTES >> 20,
            "video_files_size_in_mb": 500,
            "fps": self.fps,
            "splits": {"train": f"0:{self.episodes}"},
            "data_path": layout.DATA,
            "video_path": None,
            "features": {**features, **layout.INDEX_FEATURES},
        }

    def _continue(self) -> None:
        info = layout.read_info(self.folder)
        if {**self.features, **_index_features()} != info.features or info.fps != self.fps:
            raise DatasetError(
                f"{self.folder} holds a dataset of other features or another fps; name a new folder"
            )
        self._rows = read_table(self.folder / layout.fill(layout.EPISODES, 0, 0)).to_pylist()
        for row in self._rows:
            for task in row["tasks"]:
                self._tasks.setdefault(task, len(self._tasks))
        last = self._rows[-1]
        self._file = 1 + last["data/chunk_index"] * layout.FILES_PER_CHUNK + last["data/file_index"]

    def _write_table(self, name: str, table: Any) -> None:
        pq = need("pyarrow.parquet", "pyarrow")
        path, partial = self._target(name)
        pq.write_table(table, partial, compression="snappy", use_dictionary=False)
        os.replace(partial, path)

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        path, partial = self._target(name)
        partial.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")
        os.replace(partial, path)

    def _target(self, name: str) -> tuple[Path, Path]:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path, path.with_name(f".{path.name}.partial")


def _index_features() -> dict[str, Feature]:
    return {
        name: Feature(raw["dtype"], tuple(raw["shape"]), raw["names"])
        for name, raw in layout.INDEX_FEATURES.items()
    }


def _encode(
    name: str, feature: Feature, frames: Sequence[Any] | NDArray[Any]
) -> tuple[list[bytes], Summary]:
    looked_at = [frames[i] for i in sample(len(frames))]
    pictures = [decode_image(f, name) if isinstance(f, bytes) else f for f in looked_at]
    for picture in [*pictures, *(f for f in frames if not isinstance(f, bytes))]:
        if picture.dtype != np.uint8 or picture.shape != feature.shape:
            raise DatasetError(
                f"{name}: expected uint8 {list(feature.shape)}, got {picture.dtype} "
                f"{list(picture.shape)}"
            )
    encoded = [f if isinstance(f, bytes) else encode_png(f) for f in frames]
    return encoded, summarize_images(pictures)


def _summary_of(row: Mapping[str, Any], name: str) -> Summary:
    stats = ("min", "max", "mean", "std", "count")
    return {stat: np.asarray(row[f"stats/{name}/{stat}"], np.float64) for stat in stats}


def _task_table(tasks: Sequence[str]) -> Any:
    """task_index by instruction; the instruction is the index that pandas finds again."""
    pa = need("pyarrow", "pyarrow")
    index = "__index_level_0__"
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64",
         "numpy_type": "int64", "metadata": None},
        {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object",
         "metadata": None},
    ]  # fmt: skip
    names = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
             "metadata": {"encoding": "UTF-8"}}  # fmt: skip
    pandas = {
        "index_columns": [index], "column_indexes": [names], "columns": columns,
        "creator": {"library": "pyarrow", "version": pa.__version__}, "pandas_version": "2.2.3",
    }  # fmt: skip
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()),
                      index: pa.array(list(tasks), pa.string())})  # fmt: skip
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})

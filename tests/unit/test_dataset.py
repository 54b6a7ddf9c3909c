"""LeRobotDataset v3.0 folders: what is written comes back, and follows LeRobot's rules."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from dataset_helpers import CAMERA, FEATURES, edit_info, rows, write

pytest.importorskip("pyarrow")
pytest.importorskip("PIL")

from smolvla_edge.dataset import DatasetWriter, read_dataset
from smolvla_edge.dataset.layout import INDEX_FEATURES, Feature, fill
from smolvla_edge.errors import DatasetError

LENGTHS = [5, 3, 7]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "set", LENGTHS)


@pytest.fixture
def copy(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "copy")


def test_episodes_come_back_bit_for_bit(recorded):
    found = read_dataset(recorded)
    assert [entry.length for entry in found.episodes] == LENGTHS
    assert found.tasks == ["open it", "close it"]
    for index, length in enumerate(LENGTHS):
        want = rows(length, index)
        frames = list(found.frames(index))
        assert len(frames) == length
        for number, frame in enumerate(frames):
            assert np.array_equal(frame.images[CAMERA], want[CAMERA][number])
            assert np.array_equal(frame.state, want["observation.state"][number])
            assert np.array_equal(frame.action, want["action"][number])
            assert frame.task == ("open it", "close it")[index % 2]
            assert frame.timestamp == pytest.approx(number / 30)


def test_the_layout_is_lerobots(recorded):
    """The rules of lerobot.datasets (0.4): names, types and running numbers."""
    pq = pytest.importorskip("pyarrow.parquet")
    info = json.loads((recorded / "meta" / "info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 15, 2)
    assert info["splits"] == {"train": "0:3"}
    assert info["features"].keys() == {*FEATURES, *INDEX_FEATURES}
    frames = pq.read_table(recorded / fill(info["data_path"], 0, 0))
    assert frames.column_names == [*FEATURES, *INDEX_FEATURES]
    assert frames["index"].to_pylist() == list(range(15))
    assert frames["episode_index"].to_pylist() == [0] * 5 + [1] * 3 + [2] * 7
    assert frames["frame_index"].to_pylist() == [*range(5), *range(3), *range(7)]
    action = frames.schema.field("action").type
    assert (str(action.value_type), action.list_size) == ("float", 3)
    assert frames[CAMERA][0].as_py().keys() == {"bytes", "path"}
    episodes = pq.read_table(recorded / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [e["dataset_from_index"] for e in episodes] == [0, 5, 8]
    assert [e["dataset_to_index"] for e in episodes] == [5, 8, 15]
    assert [e["tasks"] for e in episodes] == [["open it"], ["close it"], ["open it"]]


def test_instructions_are_the_index_of_their_table(recorded):
    """LeRobot looks a task up in the index that pandas restores; `make interop` sees it do so."""
    table = pytest.importorskip("pyarrow.parquet").read_table(recorded / "meta" / "tasks.parquet")
    (index,) = table.schema.pandas_metadata["index_columns"]
    assert table[index].to_pylist() == ["open it", "close it"]
    assert table["task_index"].to_pylist() == [0, 1]
    described = {column["field_name"]: column for column in table.schema.pandas_metadata["columns"]}
    assert described.keys() == set(table.column_names)
    assert described[index]["name"] is None and described[index]["pandas_type"] == "unicode"


def test_statistics_are_those_of_all_frames(recorded):
    stats = json.loads((recorded / "meta" / "stats.json").read_text())
    everything = [rows(length, index) for index, length in enumerate(LENGTHS)]
    for name in ("observation.state", "action"):
        values = np.concatenate([episode[name] for episode in everything]).astype(np.float64)
        assert stats[name]["mean"] == pytest.approx(values.mean(0))
        assert stats[name]["std"] == pytest.approx(values.std(0))
        assert stats[name]["min"] == pytest.approx(values.min(0))
        assert stats[name]["max"] == pytest.approx(values.max(0))
        assert stats[name]["count"] == [15]
    pixels = np.concatenate([episode[CAMERA] for episode in everything]) / 255
    assert np.shape(stats[CAMERA]["mean"]) == (3, 1, 1)
    assert np.ravel(stats[CAMERA]["mean"]) == pytest.approx(pixels.mean((0, 1, 2)))
    assert np.ravel(stats[CAMERA]["std"]) == pytest.approx(pixels.std((0, 1, 2)))


def test_many_files_and_an_interruption_make_the_same_dataset(tmp_path, recorded):
    folder = tmp_path / "set"
    writer = DatasetWriter(folder, 30, FEATURES, robot_type="arm", file_bytes=1)
    writer.add(rows(5, 0), "open it")
    writer.add(rows(3, 1), "close it")
    again = DatasetWriter(folder, 30, FEATURES, robot_type="arm")
    assert again.episodes == 2
    again.add(rows(7, 2), "open it")
    del again  # killed before its file was full
    with DatasetWriter(folder, 30, FEATURES, robot_type="arm") as third:
        assert third.episodes == 2
        third.add(rows(7, 2), "open it")
    assert len(list((folder / "data" / "chunk-000").iterdir())) == 3
    for index in range(3):
        pairs = zip(read_dataset(folder).frames(index), read_dataset(recorded).frames(index),
                    strict=True)  # fmt: skip
        for mine, theirs in pairs:
            assert np.array_equal(mine.images[CAMERA], theirs.images[CAMERA])
            assert np.array_equal(mine.action, theirs.action) and mine.task == theirs.task
    for name in ("meta/stats.json", "meta/info.json"):
        assert (folder / name).read_text() == (recorded / name).read_text()


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"action": np.zeros((4, 3), np.float32)}, "one row a frame"),
        ({"action": np.zeros((5, 2), np.float32)}, r"action: expected finite rows of \[3\]"),
        ({"action": np.full((5, 3), np.nan, np.float32)}, "action: expected finite"),
        ({CAMERA: np.zeros((5, 16, 16, 3), np.uint8)}, r"expected uint8 \[16, 24, 3\]"),
        ({CAMERA: np.zeros((5, 16, 24, 3), np.float32)}, "got float32"),
        ({CAMERA: [b"no picture"] * 5}, "damaged"),
        ({"extra": np.zeros(5)}, "expected the features"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, change, complaint):
    writer = DatasetWriter(tmp_path / "set", 30, FEATURES)
    with pytest.raises(DatasetError, match=complaint):
        writer.add(rows(5, 0) | change, "open it")


def test_another_dataset_is_not_continued(copy):
    for fps, features in ((60, FEATURES), (30, {"action": Feature("float32", (3,))})):
        with pytest.raises(DatasetError, match="other features or another fps"):
            DatasetWriter(copy, fps, features)


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"codebase_version": "v2.1"}, "expected codebase_version v3.0.*Convert it"),
        ({"features": {}}, "expected an object of features"),
        ({"features": {"action": {"dtype": "float32", "shape": "3"}}}, "expected a dtype"),
        ({"fps": "30"}, "expected a number fps"),
        ({"data_path": "../{chunk_index}.parquet"}, "inside the folder"),
        ({"data_path": "/etc/{chunk_index}"}, "inside the folder"),
        ({"data_path": "{chunk_index.__class__}"}, "inside the folder"),
        ({"data_path": 3}, "path template"),
        ({"total_episodes": 4}, "expected episodes 0 to 3"),
    ],
)
def test_a_broken_description_is_refused(copy, changes, complaint):
    edit_info(copy, **changes)
    with pytest.raises(DatasetError, match=complaint):
        read_dataset(copy)


def test_a_folder_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="expected a LeRobotDataset folder"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("name", ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"])
def test_damaged_lists_are_refused(copy, name):
    (copy / name).write_bytes(b"PAR1 no")
    with pytest.raises(DatasetError, match="damaged"):
        read_dataset(copy)


def test_damaged_and_missing_frames_are_refused(copy):
    data = copy / "data/chunk-000/file-000.parquet"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="damaged"):
        next(read_dataset(copy).frames(0))
    data.unlink()
    with pytest.raises(DatasetError, match="found none"):
        next(read_dataset(copy).frames(0))


def test_unknown_episodes_cameras_and_columns_are_refused(recorded):
    found = read_dataset(recorded)
    with pytest.raises(DatasetError, match="expected 0 to 2"):
        found.columns(3)
    with pytest.raises(DatasetError, match=r"one of the cameras observation\.image"):
        next(found.images(0, "observation.images.wrist"))
    with pytest.raises(DatasetError, match="expected the features"):
        found.columns(0, ["torque"])

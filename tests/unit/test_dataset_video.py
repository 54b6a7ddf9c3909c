"""Cameras that are recorded as video, as LeRobot records them by default."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dataset_helpers import CAMERA, FEATURES, rows, write
from needs import needs

from smolvla_edge.dataset import read_dataset
from smolvla_edge.errors import DatasetError

with needs("av", "pyarrow"):
    import av
    import pyarrow as pa
    import pyarrow.parquet as pq

LENGTHS = [5, 8]
FPS = 30


def shade(episode: int, frame: int) -> int:
    return 20 + 100 * episode + 10 * frame


@pytest.fixture
def folder(tmp_path):
    """The dataset of images turned into one of video: both episodes in one file."""
    folder = write(tmp_path / "set", LENGTHS)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"][CAMERA] |= {"dtype": "video", "shape": [64, 64, 3]}
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    (folder / "meta/info.json").write_text(json.dumps(info))
    path = folder / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width = stream.height = 64
        for episode, length in enumerate(LENGTHS):
            for frame in range(length):
                picture = np.full((64, 64, 3), shade(episode, frame), np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    listed = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(listed)
    starts = [0.0, LENGTHS[0] / FPS]
    for name, values in (
        ("chunk_index", [0, 0]),
        ("file_index", [0, 0]),
        ("from_timestamp", starts),
        ("to_timestamp", [starts[1], sum(LENGTHS) / FPS]),
    ):
        table = table.append_column(f"videos/{CAMERA}/{name}", pa.array(values))
    pq.write_table(table, listed)
    return folder


@pytest.mark.parametrize("episode", [0, 1])
def test_each_episode_gets_its_own_frames(folder, episode):
    frames = list(read_dataset(folder).frames(episode))
    assert len(frames) == LENGTHS[episode]
    want = rows(LENGTHS[episode], episode)
    for number, frame in enumerate(frames):
        picture = frame.images[CAMERA]
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        assert abs(float(picture.mean()) - shade(episode, number)) < 4  # the codec loses some
        assert np.array_equal(frame.action, want["action"][number])


def test_a_video_that_is_too_short_is_refused(folder):
    listed = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(listed)
    name = f"videos/{CAMERA}/from_timestamp"
    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, pa.array([0.0, 9 / FPS])), listed)
    with pytest.raises(DatasetError, match=r"expected 8 frames from 0\.300 s on, found 4"):
        list(read_dataset(folder).images(1, CAMERA))


def test_a_damaged_and_a_missing_video_are_refused(folder):
    path = folder / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(DatasetError, match="damaged"):
        list(read_dataset(folder).images(0, CAMERA))
    path.unlink()
    with pytest.raises(DatasetError, match=r"file-000\.mp4"):
        list(read_dataset(folder).images(0, CAMERA))


def test_features_are_untouched_by_the_change_of_camera(folder):
    assert read_dataset(folder).info.features["action"] == FEATURES["action"]

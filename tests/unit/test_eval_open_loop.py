"""Action errors over recorded frames, against numbers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from dataset_helpers import edit_info
from eval_helpers import arm_policy

pytest.importorskip("pyarrow")
pytest.importorskip("PIL")

from smolvla_edge.dataset import DatasetWriter, read_dataset
from smolvla_edge.dataset.layout import Feature
from smolvla_edge.errors import DatasetError, InputError
from smolvla_edge.eval.open_loop import Chunks, Moments, error_table, predict_all
from smolvla_edge.eval.sides import Side
from smolvla_edge.policy import load

CAMERA = "observation.image"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(arm_policy(tmp_path_factory.mktemp("policy") / "p"))


@pytest.fixture
def folder(tmp_path):
    features = {
        CAMERA: Feature("image", (32, 48, 3)),
        "observation.state": Feature("float32", (4,)),
        "action": Feature("float32", (4,)),
    }
    random = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "set", 10, features) as writer:
        for length in (7, 12):
            writer.add(
                {
                    CAMERA: random.integers(0, 256, (length, 32, 48, 3), np.uint8),
                    "observation.state": random.standard_normal((length, 4)),
                    "action": random.standard_normal((length, 4)),
                },
                "push it",
            )
    return tmp_path / "set"


def test_each_moment_is_predicted_from_its_own_frame_and_noise(policy, folder):
    dataset = read_dataset(folder)
    moments = Moments(dataset, [0, 1], every=5)
    assert moments.count() == 2 + 3
    chunks = predict_all(Side(policy), moments, seed=40)
    opened = load(policy)
    frames = list(dataset.frames(1))
    want = opened.predict(frames[5].images, frames[5].state, "push it", seed=40 + 3)
    assert np.array_equal(chunks.predicted[3], want.actions)
    actions = np.stack([frame.action for frame in frames])
    assert np.array_equal(chunks.recorded[3, :7], actions[5:12])
    assert np.isnan(chunks.recorded[3, 7:]).all()  # past the end of the episode
    everything = np.concatenate([actions, [f.action for f in dataset.frames(0)]])
    assert chunks.span == pytest.approx(np.ptp(everything.astype(np.float64), axis=0))


def test_a_token_cache_begins_anew_with_every_episode(policy, folder):
    moments = Moments(read_dataset(folder), [0, 1], every=5)
    keeps_all = Side(policy, "cache.threshold=10,cache.keyframe_every=99,cache.max_age=99")
    cached, plain = (predict_all(side, moments) for side in (keeps_all, Side(policy)))
    same = [np.array_equal(*pair) for pair in zip(cached.predicted, plain.predicted, strict=True)]
    assert same == [True, False, True, False, False]  # the first of each of two episodes


def test_an_empty_camera_is_not_looked_for(tmp_path, folder):
    empty = str(arm_policy(tmp_path / "p", empty_cameras=1))
    assert len(load(empty).contract.cameras) == 2
    chunks = predict_all(Side(empty), Moments(read_dataset(folder), [0], every=7))
    assert np.isfinite(chunks.predicted).all()


def test_what_a_side_sees_and_is_told_is_applied(policy, folder):
    moments = Moments(read_dataset(folder), [0], every=7)
    frame = next(iter(read_dataset(folder).frames(0)))
    opened = load(policy)
    grey = {name: np.full_like(picture, 128) for name, picture in frame.images.items()}
    want = opened.predict(grey, frame.state, "push it", seed=0)
    assert np.array_equal(predict_all(Side(policy, blank=True), moments).predicted[0], want.actions)
    want = opened.predict(frame.images, frame.state, "pull it", seed=0)
    told = predict_all(Side(policy, instruction="pull it"), moments)
    assert np.array_equal(told.predicted[0], want.actions)
    for words in ("@other", "@lerobot"):
        with pytest.raises(InputError, match="a recording has no task"):
            predict_all(Side(policy, instruction=words), moments)


def test_errors_are_those_of_the_definition():
    random = np.random.default_rng(1)
    predicted = random.standard_normal((6, 8, 2)).astype(np.float32)
    recorded = random.standard_normal((6, 8, 2)).astype(np.float32)
    recorded[2, 5:] = np.nan
    span = np.array([2.0, 0.0])
    table = error_table(Chunks(predicted, recorded, span, np.zeros(6)), recorded, 3)
    for name, rows in (("executed", 3), ("chunk", 8)):
        errors = [
            float(predicted[i, r, 0]) - float(recorded[i, r, 0])
            for i in range(6)
            for r in range(rows)
            if not (i == 2 and r >= 5)
        ]
        part = table[name]
        assert part["rows"] == rows
        assert part["rms"][0] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-6)
        assert part["mean"][0] == pytest.approx(np.mean(np.abs(errors)), rel=1e-6)
        assert part["max"][0] == pytest.approx(np.max(np.abs(errors)), rel=1e-6)
        assert part["rms_of_range"] == pytest.approx([part["rms"][0] / 2, 0.0])


def test_a_setting_is_exactly_itself_and_differs_from_another(policy, folder):
    moments = Moments(read_dataset(folder), [0], every=3)
    first = predict_all(Side(policy), moments)
    same = predict_all(Side(policy, "steps=4"), moments, threads=2)  # tiny takes 4 steps
    other = predict_all(Side(policy, "steps=1"), moments)
    assert max(error_table(same, first.predicted, 8)["chunk"]["max"]) == 0
    assert min(error_table(other, first.predicted, 8)["chunk"]["max"]) > 0


def test_a_camera_of_another_name_is_matched_when_it_is_named(policy, folder, tmp_path):
    import json

    raw = json.loads((folder / "meta/info.json").read_text())
    features = {("front" if k == CAMERA else k): v for k, v in raw["features"].items()}
    pq = pytest.importorskip("pyarrow.parquet")
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["front", *table.column_names[1:]]), path)
    edit_info(folder, features=features)
    moments = Moments(read_dataset(folder), [0], every=7)
    with pytest.raises(DatasetError, match=r"the dataset has front.*--rename DATASET=observation"):
        predict_all(Side(policy), moments)
    found = predict_all(Side(policy), moments, cameras={"front": CAMERA})
    assert found.predicted.shape == (1, 8, 4)


def test_other_widths_and_no_moments_are_refused(tmp_path, folder):
    dataset = read_dataset(folder)
    for episodes, every in (([], 1), ([0], 0)):
        with pytest.raises(DatasetError, match="expected some episodes and every >= 1"):
            Moments(dataset, episodes, every)
    from smolvla_edge.synthetic import make_checkpoint

    six = make_checkpoint(tmp_path / "six", "tiny", cameras=[CAMERA], state_dim=4, action_dim=6)
    with pytest.raises(DatasetError, match="action: expected 6 numbers, the dataset has 4"):
        predict_all(Side(str(six)), Moments(dataset, [0], 3))

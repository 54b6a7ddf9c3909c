"""What a policy does for its plan: cameras by name, what is left of a chunk, what was done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from policy_helpers import (
    CAM1,
    CAM2,
    FRAME1,
    FRAME2,
    IMAGES,
    STATE,
    TASK,
    FakeEngine,
    batch,
    changed,
    tiny_checkpoint,
    with_engine,
)

from smolvla_edge.cache_report import CacheReport
from smolvla_edge.errors import PlanError
from smolvla_edge.plan import Cache, Plan, Skip
from smolvla_edge.policy import Policy, load
from smolvla_edge.source import open_source

CACHED = Plan(steps=4, cache=Cache(0.1, 10, 10))
WARM = Plan(steps=4, warm_start=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny")


class TestRefusedAtLoad:
    @pytest.mark.parametrize("backend", ["native", "torch"])
    @pytest.mark.parametrize(
        "message, plan",
        [
            ("horizon must be at most the chunk's 8", Plan(horizon=9)),
            (r"late_state=True", Plan(late_state=True)),
        ],
    )
    def test_by_every_backend(self, folder: Path, backend: str, message: str, plan: Plan) -> None:
        if backend == "torch":
            pytest.importorskip("torch")
        with pytest.raises(PlanError, match=message):
            load(folder, backend=backend, plan=plan)

    @pytest.mark.parametrize(
        "message, plan",
        [
            (f"unknown 'top', 'left'; the model's cameras are {CAM1}, {CAM2}", ("top", "left")),
            ("unknown 'wrist'", (CAM1, "wrist")),
        ],
    )
    def test_unknown_cameras(self, folder: Path, message: str, plan: tuple[str, ...]) -> None:
        with pytest.raises(PlanError, match=message):
            with_engine(folder, FakeEngine(), Plan(cache=Cache(0.1, 10, 10, plan)))

    def test_layers_that_are_not_there(self, folder: Path) -> None:
        with pytest.raises(PlanError, match=r"skip\.vision: layer 2 of 2"):
            with_engine(folder, FakeEngine(), Plan(skip=Skip(vision=(1, 2))))

    def test_a_warm_start_beside_real_time_chunking(self, folder: Path, tmp_path: Path) -> None:
        guided = changed(folder, tmp_path, rtc_config={"enabled": True})
        with pytest.raises(PlanError, match="remove warm_start"):
            with_engine(guided, FakeEngine(), WARM)


class TestCache:
    def test_cameras_go_by_their_place_in_the_contract(self, folder: Path) -> None:
        engine = FakeEngine()
        policy = with_engine(folder, engine, CACHED, allow_missing_cameras=True)
        policy.predict(IMAGES, STATE, TASK)
        policy.predict({CAM2: FRAME2}, STATE, TASK)
        policy.predict({CAM2: FRAME2, CAM1: FRAME1}, STATE, TASK)
        policy.predict_action_chunk(batch())
        assert [call["cameras"] for call in engine.calls] == [[0, 1], [1], [0, 1], [0, 1]]

    def test_blank_cameras_have_their_place_too(self, folder: Path, tmp_path: Path) -> None:
        engine = FakeEngine()
        blank = changed(folder, tmp_path, empty_cameras=1)
        policy = with_engine(blank, engine, CACHED, allow_missing_cameras=True)
        cameras = policy.contract.cameras
        chunk = policy.predict({CAM2: FRAME2, CAM1: None}, STATE, TASK)
        ours = engine.calls[0]
        present = [f is not None for f in ours["frames"]]
        assert [cameras[place] for place in ours["cameras"]] == [CAM2, CAM1]
        assert present == [True, False]
        assert chunk.provenance["cache"].keys() == {CAM2}

    def test_a_masked_camera_of_a_batch_keeps_its_slot(self, folder: Path) -> None:
        engine = FakeEngine()
        policy = with_engine(folder, engine, CACHED)
        masked = {**batch(), f"{CAM1}_padding_mask": np.array([False])}
        policy.predict_action_chunk(masked)
        assert engine.calls[0]["cameras"] == [0, 1] and engine.calls[0]["frames"][0] is None

    def test_a_batch_is_of_several_robots(self, folder: Path) -> None:
        policy = with_engine(folder, FakeEngine(), CACHED)
        with pytest.raises(PlanError, match="one robot, got a batch of 2"):
            policy.predict_action_chunk(batch(2))
        assert with_engine(folder, FakeEngine()).predict_action_chunk(batch(2)).shape == (2, 8, 6)

    def test_reset_reaches_the_engine(self, folder: Path) -> None:
        engine = FakeEngine()
        policy = with_engine(folder, engine, CACHED)
        assert engine.resets == 0
        policy.reset(seed=1)
        assert engine.resets == 1

    def test_provenance(self, folder: Path) -> None:
        report = CacheReport(False, None, 0.0, 1, None).to_json()
        assert report == {
            "keyframe": False, "why": None, "dirty": 0.0, "oldest": 1, "drift": None,
        }  # fmt: skip
        policy = with_engine(folder, FakeEngine(), CACHED)
        provenance = policy.predict(IMAGES, STATE, TASK).provenance
        assert provenance["evaluations"] == 4
        assert provenance["cache"] == {CAM1: report, CAM2: report}
        plain = with_engine(folder, FakeEngine()).predict(IMAGES, STATE, TASK).provenance
        assert plain["evaluations"] == 4 and "cache" not in plain


class TestWarmStart:
    """A chunk has 8 actions, of which `step` uses 3."""

    def steps(self, policy: Policy, count: int, task: str = TASK) -> None:
        for _ in range(count):
            policy.step(IMAGES, STATE, task)

    def given(self, engine: FakeEngine) -> list[np.ndarray | None]:
        return [None if call["rtc"] is None else call["rtc"].prev for call in engine.calls]

    def test_step_hands_over_the_rest(self, folder: Path) -> None:
        engine = FakeEngine()
        engine.result += np.arange(8, dtype=np.float32)[:, None] / 16
        self.steps(with_engine(folder, engine, WARM), 7)
        first, second, third = self.given(engine)
        assert first is None and second is not None and third is not None
        np.testing.assert_array_equal(second, engine.result[3:] + 1)
        np.testing.assert_array_equal(third, engine.result[3:] + 2)

    def test_not_without_a_warm_start(self, folder: Path) -> None:
        engine = FakeEngine()
        self.steps(with_engine(folder, engine), 4)
        assert self.given(engine) == [None, None]

    def test_not_to_another_task(self, folder: Path) -> None:
        engine = FakeEngine()
        policy = with_engine(folder, engine, WARM)
        self.steps(policy, 3)
        self.steps(policy, 4, "put it down")
        first, other, same = self.given(engine)
        assert first is None and other is None and same is not None

    def test_not_after_a_reset(self, folder: Path) -> None:
        engine = FakeEngine()
        policy = with_engine(folder, engine, WARM)
        self.steps(policy, 3)
        policy.reset()
        self.steps(policy, 1)
        assert self.given(engine) == [None, None]

    def test_nothing_is_left_of_a_chunk_that_was_used_up(self, folder: Path) -> None:
        engine = FakeEngine(rows=3)
        self.steps(with_engine(folder, engine, replace(WARM, horizon=3)), 4)
        assert self.given(engine) == [None, None]

    def test_a_caller_may_bring_one(self, folder: Path) -> None:
        engine = FakeEngine()
        policy = with_engine(folder, engine, WARM)
        rest = np.ones((2, 6), np.float32)
        policy.predict(IMAGES, STATE, TASK, prev_chunk_left_over=rest)
        policy.predict_action_chunk(batch(), prev_chunk_left_over=rest[None])
        for given in self.given(engine):
            np.testing.assert_array_equal(given, rest)

    def test_an_engine_continues(self, folder: Path) -> None:
        """A step's second chunk is what predict makes of the rest of the first."""
        pytest.importorskip("torch")
        source = open_source(folder)
        from smolvla_edge.backends.torch import TorchBackend

        engine = TorchBackend(source.model, source.tensors, source.contract)
        policy = Policy(source, engine, WARM)
        policy.reset(seed=3)
        self.steps(policy, 1)
        first = policy.last_chunk
        self.steps(policy, 3)
        second = policy.last_chunk
        assert first is not None and second is not None
        again = policy.predict(
            IMAGES,
            STATE,
            TASK,
            seed=second.provenance["seed"],
            prev_chunk_left_over=first.normalized[3:],
        )
        np.testing.assert_array_equal(again.actions, second.actions)
        cold = policy.predict(IMAGES, STATE, TASK, seed=second.provenance["seed"])
        assert np.abs(cold.normalized - second.normalized).max() > 1e-3

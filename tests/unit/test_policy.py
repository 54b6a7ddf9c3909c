"""predict and step on a tiny checkpoint: what comes out, what is refused, what repeats itself."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import Tensors, change_tensors
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
    tiny_checkpoint,
    with_engine,
)

from smolvla_edge.backends import Backend, open_backend
from smolvla_edge.errors import (
    InputError,
    NonFiniteError,
    PromptTooLongError,
    SmolVLAEdgeError,
)
from smolvla_edge.noise import SeedSequence, normal
from smolvla_edge.plan import Plan
from smolvla_edge.policy import Policy, load
from smolvla_edge.preprocess import normalize, unnormalize
from smolvla_edge.source import open_source
from smolvla_edge.statistics import Mode, checked_statistics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load(folder)


class TestPredict:
    def test_shapes_and_kinds(self, policy: Policy) -> None:
        chunk = policy.predict(images=IMAGES, state=STATE, task=TASK, seed=1)
        assert chunk.actions.shape == chunk.normalized.shape == (8, 6)
        assert chunk.actions.dtype == chunk.normalized.dtype == np.float32
        assert len(chunk) == 8 and chunk.flags == ()
        assert set(chunk.timings) == {"preprocess", "vision", "prefix", "flow", "total"}
        stages = sum(time for name, time in chunk.timings.items() if name != "total")
        assert stages <= chunk.timings["total"] * 1.05 + 0.5
        assert isinstance(policy.engine, Backend)

    def test_provenance(self, policy: Policy, folder: Path) -> None:
        provenance = policy.predict(IMAGES, STATE, TASK, seed=7).provenance
        assert provenance["backend"] == "native"
        assert provenance["device"] == "cpu"
        assert provenance["seed"] == 7
        assert provenance["exact"] is True
        assert provenance["plan"]["steps"] == 4
        assert provenance["source"] == str(folder)
        assert provenance["cameras"] == [CAM1, CAM2]
        json.dumps(provenance)

    def test_inputs_are_not_changed(self, policy: Policy) -> None:
        before = FRAME1.copy(), STATE.copy()
        policy.predict(IMAGES, STATE, TASK)
        np.testing.assert_array_equal(FRAME1, before[0])
        np.testing.assert_array_equal(STATE, before[1])

    def test_float_frames_are_bytes_over_255(self, policy: Policy) -> None:
        floats = {name: frame.astype(np.float32) / 255 for name, frame in IMAGES.items()}
        one = policy.predict(IMAGES, STATE, TASK, seed=1).actions
        two = policy.predict(floats, STATE, TASK, seed=1).actions
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-4 * np.abs(one).max())

    def test_order_of_arguments_is_not_order_of_cameras(self, policy: Policy) -> None:
        one = policy.predict(IMAGES, STATE, TASK, seed=1).actions
        same = policy.predict(dict(reversed(IMAGES.items())), STATE, TASK, seed=1).actions
        swapped = policy.predict({CAM1: FRAME2, CAM2: FRAME1}, STATE, TASK, seed=1).actions
        np.testing.assert_array_equal(one, same)
        assert np.abs(one - swapped).max() > 1e-3

    def test_state_far_outside_is_flagged(self, policy: Policy) -> None:
        far = STATE.copy()
        far[2] = 1e4
        (flag,) = policy.predict(IMAGES, far, TASK).flags
        assert "observation.state[2]" in flag and "standard deviations" in flag

    @pytest.mark.parametrize(
        "change, error",
        [
            ({"images": {}}, InputError),
            ({"images": [FRAME1, FRAME2]}, InputError),
            ({"images": None}, InputError),
            ({"images": {CAM1: FRAME1}}, InputError),
            ({"images": {**IMAGES, "top": FRAME1}}, InputError),
            ({"images": {CAM1: FRAME1, CAM2: FRAME2[..., 0]}}, InputError),
            ({"images": {CAM1: FRAME1, CAM2: FRAME2.astype(np.float64)}}, InputError),
            ({"images": {CAM1: FRAME1, CAM2: np.full((8, 8, 3), np.nan, np.float32)}}, InputError),
            ({"images": {CAM1: FRAME1, CAM2: FRAME2[:0]}}, InputError),
            ({"images": {CAM1: FRAME1, CAM2: np.zeros((1, 2000, 3), np.uint8)}}, InputError),
            ({"images": {CAM1: FRAME1, CAM2: None}}, InputError),
            ({"state": STATE[:5]}, InputError),
            ({"state": STATE.astype(np.float64)}, InputError),
            ({"state": STATE * np.float32(np.nan)}, InputError),
            ({"task": ""}, InputError),
            ({"task": 3}, InputError),
            ({"task": "x " * 500}, PromptTooLongError),
            ({"seed": -1}, InputError),
            ({"seed": 1 << 64}, InputError),
            ({"seed": 1.0}, InputError),
            ({"seed": True}, InputError),
            ({"noise": np.zeros((7, 8), np.float32)}, InputError),
            ({"noise": np.zeros((8, 8), np.float32), "seed": 1}, InputError),
            ({"inference_delay": -1}, InputError),
            ({"inference_delay": 0.5}, InputError),
            (
                {"inference_delay": None, "prev_chunk_left_over": np.zeros((4, 6), np.float32)},
                InputError,
            ),
            ({"execution_horizon": 0}, InputError),
            ({"prev_chunk_left_over": np.zeros((9, 6), np.float32)}, InputError),
            ({"prev_chunk_left_over": np.zeros((4, 9), np.float32)}, InputError),
            ({"prev_chunk_left_over": np.zeros((4, 6))}, InputError),
            ({"prev_chunk_left_over": np.full((4, 6), np.inf, np.float32)}, InputError),
            ({"prev_chunk_left_over": [1.0]}, InputError),
        ],
    )
    def test_refused(
        self, policy: Policy, change: dict[str, Any], error: type[SmolVLAEdgeError]
    ) -> None:
        with pytest.raises(error):
            policy.predict(**{"images": IMAGES, "state": STATE, "task": TASK, **change})

    def test_missing_camera_when_allowed(self, folder: Path) -> None:
        policy = load(folder, allow_missing_cameras=True)
        chunk = policy.predict({CAM2: FRAME2}, STATE, TASK)
        assert chunk.provenance["cameras"] == [CAM2]
        with pytest.raises(InputError, match="no camera image at all"):
            policy.predict({}, STATE, TASK)

    def test_dropped_characters_are_flagged(self, folder: Path, tmp_path: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
        del tokenizer["model"]["vocab"]["q"]
        (tmp_path / "t.json").write_text(json.dumps(tokenizer))
        (flag,) = load(folder, tokenizer=tmp_path / "t.json").predict(IMAGES, STATE, "aqb").flags
        assert "'q'" in flag

    @pytest.mark.parametrize("backend", ["native", "torch"])
    def test_non_finite_weights(self, folder: Path, tmp_path: Path, backend: str) -> None:
        """Every way to actions refuses them, the seams too."""
        if backend == "torch":
            pytest.importorskip("torch")
        broken = shutil.copytree(folder, tmp_path / "broken")

        def damage(tensors: Tensors) -> None:
            dtype, values = tensors["model.action_out_proj.bias"]
            values[1] = np.nan
            tensors["model.action_out_proj.bias"] = dtype, values

        change_tensors(broken, damage)
        policy = load(broken, backend=backend)
        model, engine = policy.model, policy.engine
        pixels = np.zeros((2, 3, 64, 64), np.float32)
        prompt = (
            np.ones(2, bool),
            np.array([5, 9]),
            np.ones(2, bool),
            np.zeros(model.max_state_dim, np.float32),
        )
        noise = normal(1, model.chunk_size, model.max_action_dim)
        engine.prefill(engine.encode_images(pixels), *prompt)
        for call in (
            lambda: policy.predict(IMAGES, STATE, TASK),
            lambda: policy.predict_action_chunk(batch()),
            lambda: engine.sample_actions(pixels, *prompt, noise),
            lambda: engine.denoise(noise),
        ):
            with pytest.raises(NonFiniteError):
                call()

    @pytest.mark.parametrize("backend", ["native", "torch"])
    @pytest.mark.parametrize(
        "mode, old", [(Mode.MEAN_STD, False), (Mode.MIN_MAX, False), (Mode.MIN_MAX, True)]
    )
    def test_engines_normalise_as_numpy_does(
        self, folder: Path, backend: str, mode: Mode, old: bool
    ) -> None:
        """With an eps large enough to be seen."""
        if backend == "torch":
            pytest.importorskip("torch")
        source = open_source(folder)
        numbers = dict(zip(mode.needs, (STATE - 1, STATE + 3), strict=True))
        statistics = checked_statistics(
            "x", 6, mode, numbers, eps=0.25, eps_in_range=old, source="test"
        )
        contract = replace(source.contract, state=statistics, action=statistics)
        engine = open_backend(source.model, source.tensors, contract, backend=backend)
        rest = [FRAME1, FRAME2], np.array([5, 9])
        raw = STATE * np.float32(2)
        noise = normal(1, 8, 8)
        got = engine.predict(*rest, raw, noise)
        want = engine.predict(*rest, normalize(raw, statistics), noise, state_is_normalized=True)
        np.testing.assert_allclose(got.normalized, want.normalized, rtol=0, atol=1e-5)
        expected = unnormalize(got.normalized, statistics)
        np.testing.assert_allclose(got.actions, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_non_finite_actions(self, folder: Path, bad: float) -> None:
        policy = with_engine(folder, FakeEngine(value=bad))
        with pytest.raises(NonFiniteError):
            policy.predict(IMAGES, STATE, TASK)
        with pytest.raises(NonFiniteError):
            policy.step(IMAGES, STATE, TASK)
        with pytest.raises(NonFiniteError):
            policy.predict_action_chunk(batch())

    def test_renamed_cameras(self, folder: Path, policy: Policy) -> None:
        renamed = load(folder, rename={"top": CAM1, "wrist": CAM2})
        chunk = renamed.predict({"wrist": FRAME2, "top": FRAME1}, STATE, TASK, seed=1)
        expected = policy.predict(IMAGES, STATE, TASK, seed=1)
        np.testing.assert_array_equal(chunk.actions, expected.actions)
        with pytest.raises(InputError, match=f"top .the model's {CAM1}"):
            renamed.predict({"front": FRAME1}, STATE, TASK)

    def test_guidance_pulls_towards_the_last_chunk(self, policy: Policy) -> None:
        first = policy.predict(IMAGES, STATE, TASK, seed=1).normalized
        free = policy.predict(IMAGES, STATE, TASK, seed=2).normalized
        options = {"prev_chunk_left_over": first[2:], "inference_delay": 2, "execution_horizon": 4}
        guided = policy.predict(IMAGES, STATE, TASK, seed=2, **options).normalized
        error = np.abs(free[:2] - first[2:4]).mean(), np.abs(guided[:2] - first[2:4]).mean()
        assert error[1] < 0.5 * error[0]
        for nothing in ({"prev_chunk_left_over": first[8:]}, {"inference_delay": None}):
            chunk = policy.predict(IMAGES, STATE, TASK, seed=2, **nothing)
            np.testing.assert_array_equal(chunk.normalized, free)
        far = {**options, "inference_delay": 1 << 40, "execution_horizon": 1 << 40}
        policy.predict(IMAGES, STATE, TASK, seed=2, **far)


class TestNoise:
    def test_same_seed_same_bytes(self, policy: Policy) -> None:
        one = policy.predict(IMAGES, STATE, TASK, seed=5).actions
        two = policy.predict(IMAGES, STATE, TASK, seed=5).actions
        assert one.tobytes() == two.tobytes()
        assert policy.predict(IMAGES, STATE, TASK, seed=6).actions.tobytes() != one.tobytes()

    def test_reset_starts_with_its_own_seed(self, policy: Policy) -> None:
        policy.reset(seed=5)
        first, second = (policy.predict(IMAGES, STATE, TASK) for _ in range(2))
        assert first.provenance["seed"] == 5
        assert second.provenance["seed"] not in (5, None)
        policy.reset(seed=5)
        again = [policy.predict(IMAGES, STATE, TASK).actions.tobytes() for _ in range(2)]
        assert again == [first.actions.tobytes(), second.actions.tobytes()]

    def test_every_call_can_be_repeated_from_its_provenance(self, policy: Policy) -> None:
        policy.reset()
        policy.predict(IMAGES, STATE, TASK)
        chunk = policy.predict(IMAGES, STATE, TASK)
        again = policy.predict(IMAGES, STATE, TASK, seed=chunk.provenance["seed"])
        assert again.actions.tobytes() == chunk.actions.tobytes()

    def test_noise_as_an_argument(self, policy: Policy) -> None:
        noise = normal(5, 8, 8)
        chunk = policy.predict(IMAGES, STATE, TASK, noise=noise)
        assert chunk.provenance["seed"] is None
        seeded = policy.predict(IMAGES, STATE, TASK, seed=5)
        assert chunk.actions.tobytes() == seeded.actions.tobytes()

    def test_a_horizon_is_the_first_rows(self, folder: Path, policy: Policy) -> None:
        full = policy.predict(IMAGES, STATE, TASK, seed=5).actions
        for horizon in (1, 3, 8):
            short = load(folder, plan=Plan(steps=4, horizon=horizon))
            chunk = short.predict(IMAGES, STATE, TASK, seed=5)
            assert chunk.actions.tobytes() == full[:horizon].tobytes()
            assert chunk.provenance["exact"] is True

    def test_threads_do_not_matter(self, folder: Path) -> None:
        runs = [load(folder, threads=n).predict(IMAGES, STATE, TASK, seed=5) for n in (1, 2)]
        assert runs[0].actions.tobytes() == runs[1].actions.tobytes()

    def test_seeds_differ_and_cover_the_word(self) -> None:
        seeds = SeedSequence(3)
        drawn = [seeds.next() for _ in range(1000)]
        assert len(set(drawn)) == 1000 and max(drawn) > 1 << 63
        fresh = SeedSequence(), SeedSequence()
        assert fresh[0].next() != fresh[1].next()


class TestStep:
    def test_queue_of_n_action_steps(self, folder: Path) -> None:
        engine = FakeEngine()
        policy = with_engine(folder, engine)
        actions = [policy.step(IMAGES, STATE, TASK) for _ in range(7)]
        assert len(engine.calls) == 3
        assert [float(action[0]) for action in actions] == [3, 3, 3, 5, 5, 5, 7]
        assert actions[0].shape == (6,)
        assert policy.last_chunk is not None and len(policy.last_chunk) == 8

    def test_a_new_task_is_not_served_from_the_queue(self, folder: Path) -> None:
        engine = FakeEngine()
        policy = with_engine(folder, engine)
        policy.step(IMAGES, STATE, TASK)
        policy.step(IMAGES, STATE, "put it down")
        assert len(engine.calls) == 2

    def test_reset_empties_it(self, folder: Path) -> None:
        engine = FakeEngine()
        policy = with_engine(folder, engine)
        policy.step(IMAGES, STATE, TASK)
        policy.reset()
        assert policy.last_chunk is None
        policy.step(IMAGES, STATE, TASK)
        assert len(engine.calls) == 2

    def test_actions_are_those_of_predict(self, policy: Policy) -> None:
        expected = policy.predict(IMAGES, STATE, TASK, seed=9).actions
        policy.reset(seed=9)
        for row in range(3):
            np.testing.assert_array_equal(policy.step(IMAGES, STATE, TASK), expected[row])

    def test_threads_share_one_queue(self, folder: Path) -> None:
        engine = FakeEngine()
        policy = with_engine(folder, engine)
        workers = [
            threading.Thread(target=policy.step, args=(IMAGES, STATE, TASK)) for _ in range(9)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(engine.calls) == 3

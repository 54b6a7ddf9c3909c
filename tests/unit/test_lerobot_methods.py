"""select_action and predict_action_chunk: LeRobot's batches in, LeRobot's results out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_helpers import (
    CAM1,
    FRAME1,
    IMAGES,
    STATE,
    TASK,
    batch,
    changed,
    tiny_checkpoint,
)

from smolvla_edge.errors import (
    ContractError,
    InputError,
)
from smolvla_edge.noise import normal
from smolvla_edge.policy import Policy, load
from smolvla_edge.preprocess import normalize


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load(folder)


class TestLeRobotMethods:
    NOISE = normal(3, 16, 8).reshape(2, 8, 8)

    def test_same_as_predict(self, policy: Policy) -> None:
        observation = batch()
        encoded = policy._encode(TASK).ids
        observation["observation.language.tokens"] = encoded[None]
        observation["observation.language.attention_mask"] = np.ones((1, len(encoded)), bool)
        observation["observation.state"] = normalize(STATE, policy.contract.state)[None]
        result = policy.predict_action_chunk(observation, noise=self.NOISE[:1])
        floats = {name: frame.astype(np.float32) / 255 for name, frame in IMAGES.items()}
        expected = policy.predict(floats, STATE, TASK, noise=self.NOISE[0]).normalized
        assert result.shape == (1, 8, 6)
        np.testing.assert_allclose(result[0], expected, rtol=0, atol=2e-5 * np.abs(expected).max())

    def test_batch_rows_are_independent(self, policy: Policy) -> None:
        observation = batch(2)
        observation["observation.state"][1] += 0.5
        both = policy.predict_action_chunk(observation, noise=self.NOISE)
        assert both.shape == (2, 8, 6)
        for row in range(2):
            one = {
                name: value[row : row + 1] if isinstance(value, np.ndarray) else value
                for name, value in observation.items()
            }
            alone = policy.predict_action_chunk(one, noise=self.NOISE[row : row + 1])
            np.testing.assert_array_equal(alone[0], both[row])

    def test_padded_tokens_do_not_matter(self, policy: Policy) -> None:
        observation = batch()
        short = {
            **observation,
            "observation.language.tokens": observation["observation.language.tokens"][:, :4],
            "observation.language.attention_mask": np.ones((1, 4), bool),
        }
        np.testing.assert_array_equal(
            policy.predict_action_chunk(observation, noise=self.NOISE[:1]),
            policy.predict_action_chunk(short, noise=self.NOISE[:1]),
        )

    def test_masked_camera(self, folder: Path) -> None:
        """A camera that is masked counts for nothing, like one that is missing."""
        policy = load(folder, allow_missing_cameras=True)
        masked = {**batch(), f"{CAM1}_padding_mask": np.array([False])}
        absent = {name: value for name, value in batch().items() if name != CAM1}
        np.testing.assert_array_equal(
            policy.predict_action_chunk(masked, noise=self.NOISE[:1]),
            policy.predict_action_chunk(absent, noise=self.NOISE[:1]),
        )

    def test_history_uses_the_last_step(self, policy: Policy) -> None:
        plain = batch()
        state = plain["observation.state"]
        history = {
            **plain,
            CAM1: np.stack([np.zeros_like(plain[CAM1]), plain[CAM1]], axis=1),
            "observation.state": np.stack([state + 1, state], axis=1),
        }
        np.testing.assert_array_equal(
            policy.predict_action_chunk(history, noise=self.NOISE[:1]),
            policy.predict_action_chunk(plain, noise=self.NOISE[:1]),
        )

    def test_torch_in_torch_out(self, policy: Policy) -> None:
        torch = pytest.importorskip("torch")
        tensors = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in batch(2).items()
        }
        result = policy.predict_action_chunk(tensors, noise=torch.from_numpy(self.NOISE))
        assert isinstance(result, torch.Tensor) and result.dtype == torch.float32
        expected = policy.predict_action_chunk(batch(2), noise=self.NOISE)
        np.testing.assert_array_equal(result.numpy(), expected)
        with pytest.raises(InputError, match="bfloat16"):
            tensors["observation.state"] = tensors["observation.state"].bfloat16()
            policy.predict_action_chunk(tensors)

    def test_guidance_reaches_every_row(self, policy: Policy) -> None:
        first = policy.predict_action_chunk(batch(2), noise=self.NOISE)
        guided = policy.predict_action_chunk(
            batch(2), self.NOISE[::-1], 2, first[:, 2:], execution_horizon=4
        )
        free = policy.predict_action_chunk(batch(2), noise=self.NOISE[::-1])
        before, after = (np.abs(c[:, :2] - first[:, 2:4]).mean((1, 2)) for c in (free, guided))
        assert (after < before).all()

    def test_select_action(self, policy: Policy) -> None:
        policy.reset()
        expected = policy.predict_action_chunk(batch(2), noise=self.NOISE)
        for row in (0, 1, 2, 0):
            action = policy.select_action(batch(2), noise=self.NOISE)
            np.testing.assert_array_equal(action, expected[:, row])

    def test_select_action_refuses_rtc(self, folder: Path, tmp_path: Path) -> None:
        rtc = load(changed(folder, tmp_path, rtc_config={"enabled": True}))
        with pytest.raises(ContractError, match="real-time chunking"):
            rtc.select_action(batch())
        assert rtc.predict_action_chunk(batch()).shape == (1, 8, 6)

    @pytest.mark.parametrize(
        "change",
        [
            {"observation.state": None},
            {"observation.state": [0.0] * 6},
            {"observation.state": np.zeros((1, 7), np.float32)},
            {"observation.state": np.zeros(6, np.float32)},
            {"observation.state": np.zeros((0, 6), np.float32)},
            {"observation.state": np.zeros((2, 6), np.float32)},
            {"observation.state": np.zeros((1, 6))},
            {"observation.state": np.full((1, 6), np.nan, np.float32)},
            {"observation.language.tokens": np.zeros((1, 6), np.int32)},
            {"observation.language.tokens": np.zeros((1, 5), np.int64)},
            {"observation.language.attention_mask": np.ones((1, 6), np.int64)},
            {CAM1: FRAME1[None]},
            {CAM1: FRAME1.transpose(2, 0, 1)[None]},
            {CAM1: np.full((1, 3, 8, 8), 2, np.float32)},
            {CAM1: np.full((1, 3, 8, 8), np.nan, np.float32)},
            {CAM1: np.zeros((1, 3, 0, 8), np.float32)},
            {f"{CAM1}_padding_mask": np.array([True, True])},
            {"observation.images.top": np.zeros((1, 3, 8, 8), np.float32)},
        ],
    )
    def test_refused(self, policy: Policy, change: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            policy.predict_action_chunk({**batch(), **change})

    @pytest.mark.parametrize("name", sorted(set(batch()) - {"task", f"{CAM1}_is_pad"}))
    def test_missing_key(self, policy: Policy, name: str) -> None:
        observation = batch()
        del observation[name]
        with pytest.raises(InputError, match=name):
            policy.predict_action_chunk(observation)

    def test_not_a_batch(self, policy: Policy) -> None:
        with pytest.raises(InputError, match="mapping"):
            policy.predict_action_chunk(None)  # type: ignore[arg-type]

    def test_every_camera_masked(self, policy: Policy) -> None:
        """LeRobot runs on text and state alone; so does this."""
        masks = {f"{name}_padding_mask": np.array([False]) for name in IMAGES}
        result = policy.predict_action_chunk({**batch(), **masks}, noise=self.NOISE[:1])
        assert np.isfinite(result).all()

    def test_wrong_noise(self, policy: Policy) -> None:
        for noise in (self.NOISE, self.NOISE[:1, :4], self.NOISE[:1, :, :4], "x"):
            with pytest.raises(InputError, match="noise"):
                policy.predict_action_chunk(batch(), noise=noise)

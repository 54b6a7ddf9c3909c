"""Plans in the torch backend: its caches by camera, its warm starts, and what it reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from needs import needs
from policy_helpers import CAM1, CAM2, IMAGES, STATE, TASK

from smolvla_edge.errors import InputError, PlanError
from smolvla_edge.noise import normal
from smolvla_edge.plan import Cache, Plan, Skip
from smolvla_edge.plan_fit import check_fit
from smolvla_edge.policy import Policy
from smolvla_edge.rtc import Guidance
from smolvla_edge.source import Source, open_source
from smolvla_edge.synthetic import TINY_VLM, make_checkpoint

with needs("torch"):
    from smolvla_edge.backends.torch import TorchBackend

TOKENS = np.array([5, 9, 31])
NOISE = normal(1, 8, 8)
FRAMES = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(4)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    vlm = replace(TINY_VLM, patch_size=8)
    return open_source(make_checkpoint(tmp_path_factory.mktemp("t") / "c", "tiny", vlm=vlm))


@pytest.fixture(scope="module")
def exact(source: Source) -> TorchBackend:
    return TorchBackend(source.model, source.tensors, source.contract)


@pytest.fixture
def backend(exact: TorchBackend) -> TorchBackend:
    exact.reset()
    return exact


def predict(
    backend: TorchBackend, plan: Plan | None, frames: list[Any], **more: Any
) -> tuple[np.ndarray, list[str | None]]:
    """-> actions, and of each frame why all of it was computed, or what else was done with it."""
    result = backend.predict(frames, more.pop("tokens", TOKENS), STATE, NOISE, plan, **more)
    assert len(result.cache) == len(frames)
    kinds = [
        None if report is None else report.why or ("some" if report.dirty else "none")
        for report in result.cache
    ]
    return result.normalized, kinds


def changed(frame: np.ndarray, rows: int = 1, by: int = 1) -> np.ndarray:
    result = frame.copy()
    result[:rows, :rows] ^= by
    return result


CACHE = Cache(0.05, 1000, 1000, dilate=0, check=0)
CACHED, ZERO = Plan(steps=4, cache=CACHE), Plan(steps=4, cache=replace(CACHE, threshold=0))


class TestCache:
    def test_of_threshold_zero_is_exact(self, backend: TorchBackend) -> None:
        """Bit for bit, whatever comes: the same again, one pixel, a camera that goes and comes."""
        a, b, c, d = FRAMES
        calls: list[tuple[list[Any], dict[str, Any], list[str | None]]] = [
            ([a, b], {}, ["first", "first"]),
            ([a.copy(), b.copy()], {}, ["none", "none"]),
            ([changed(a), b], {}, ["changed", "none"]),
            ([changed(a), c], {}, ["none", "changed"]),
            ([d, None], {}, ["changed", None]),
            ([d, c], {}, ["none", "none"]),
            ([d, c], {"tokens": TOKENS[:2]}, ["prompt", "prompt"]),
            ([c], {"tokens": TOKENS[:2], "cameras": [1]}, ["none"]),
            ([d, None], {"tokens": TOKENS[:2], "cameras": [0, 1]}, ["none", None]),
        ]
        for frames, more, want in calls:
            actions, kinds = predict(backend, ZERO, frames, **more)
            usual, nothing = predict(backend, None, frames, **more)
            assert kinds == want and nothing == [None] * len(frames)
            assert actions.tobytes() == usual.tobytes()

    def test_follows_the_camera_not_the_slot(self, backend: TorchBackend) -> None:
        """Missing cameras move to the end; what is kept of the others stays theirs."""
        a, b = FRAMES[:2]
        first, _ = predict(backend, CACHED, [a, b], cameras=[0, 1])
        assert predict(backend, CACHED, [b, None], cameras=[1, 0])[1] == ["none", None]
        actions, kinds = predict(backend, CACHED, [a, b], cameras=[0, 1])
        assert kinds == ["none", "none"] and actions.tobytes() == first.tobytes()
        assert predict(backend, CACHED, [b, a], cameras=[0, 1])[1] == ["scene", "scene"]

    def test_of_some_cameras(self, backend: TorchBackend) -> None:
        plan = replace(CACHED, cache=replace(CACHE, cameras=(CAM2,)))
        for kind in ("first", "none"):
            assert predict(backend, plan, FRAMES[:2])[1] == [None, kind]
        assert predict(backend, plan, [FRAMES[1], None], cameras=[1, 0])[1] == ["none", None]
        with pytest.raises(PlanError, match=rf"unknown 'top'; the model's cameras are {CAM1}"):
            predict(backend, replace(CACHED, cache=replace(CACHE, cameras=("top",))), FRAMES[:2])

    def test_some_blocks(self, backend: TorchBackend) -> None:
        """A corner of the first camera: neither the frame before nor all of this one."""
        old, new = FRAMES[:2], [changed(FRAMES[0], 16, 128), FRAMES[1]]
        predict(backend, CACHED, old)
        got, kinds = predict(backend, CACHED, new)
        assert kinds == ["some", "none"]
        for frames in (old, new):
            assert np.abs(got - predict(backend, None, frames)[0]).max() > 1e-4

    def test_prompt_plan_and_reset(self, backend: TorchBackend) -> None:
        frames = FRAMES[:2]
        assert predict(backend, CACHED, frames)[1] == ["first", "first"]
        assert predict(backend, CACHED, frames, tokens=TOKENS[1:])[1] == ["prompt", "prompt"]
        assert predict(backend, CACHED, frames)[1] == ["prompt", "prompt"]
        others: list[Plan] = [
            replace(CACHED, skip=Skip(vision=(0,))),
            replace(CACHED, cache=replace(CACHE, check=1)),
            replace(CACHED, cache=replace(CACHE, check=1), skip=Skip(vision=(1,))),
        ]
        for plan in others:
            actions, kinds = predict(backend, plan, frames)
            assert kinds == ["plan", "plan"]
            usual, _ = predict(backend, replace(plan, cache=None), frames)
            assert actions.tobytes() == usual.tobytes()
        # What vision does not read changes nothing.
        later = replace(others[-1], steps=2, solver="ab2", skip=Skip(vision=(1,), vlm=(1,)))
        assert predict(backend, later, frames)[1] == ["none", "none"]
        backend.reset()
        assert predict(backend, later, frames)[1] == ["first", "first"]

    def test_other_calls_leave_it_alone(self, backend: TorchBackend) -> None:
        frames = FRAMES[:2]
        predict(backend, CACHED, frames)
        predict(backend, None, FRAMES[2:])
        pixels = np.zeros((2, 3, 64, 64), np.float32)
        prompt = np.ones(2, bool), TOKENS, np.ones(3, bool), np.zeros(10, np.float32)
        backend.encode_images(pixels)
        backend.sample_actions(pixels, *prompt, NOISE)
        backend.trace(pixels, *prompt, NOISE)
        for call in (backend.sample_actions, backend.trace):
            with pytest.raises(PlanError, match="cache"):
                call(pixels, *prompt, NOISE, CACHED)
        with pytest.raises(InputError, match="noise"):
            backend.predict(FRAMES[2:], TOKENS, STATE, NOISE[:3], CACHED)
        assert predict(backend, CACHED, frames)[1] == ["none", "none"]

    def test_a_failure_forgets_the_camera(
        self, backend: TorchBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        predict(backend, ZERO, FRAMES[:2])
        encode, calls = backend.model.encode_image, []

        def fail_in_the_second(*arguments: Any, **named: Any) -> Any:
            calls.append(arguments)
            if len(calls) == 2:
                raise MemoryError("no room")
            return encode(*arguments, **named)

        with monkeypatch.context() as broken, pytest.raises(MemoryError):
            broken.setattr(backend.model, "encode_image", fail_in_the_second)
            predict(backend, ZERO, FRAMES[2:])
        assert predict(backend, ZERO, FRAMES[2:])[1] == ["none", "first"]


class TestFlow:
    REST = np.random.default_rng(5).standard_normal((5, 6)).astype(np.float32)
    PROMPT = (
        np.zeros((2, 3, 64, 64), np.float32),
        np.ones(2, bool),
        TOKENS,
        np.ones(3, bool),
        np.zeros(10, np.float32),
    )

    def test_a_warm_start_by_every_way(self, backend: TorchBackend) -> None:
        plan = Plan(steps=3, warm_start=0.5)
        rest = {"prev_chunk_left_over": self.REST, "inference_delay": 2}
        chunk = np.zeros((8, 8), np.float32)
        chunk[:, :6] = self.REST[[0, 1, 2, 3, 4, 4, 4, 4]]
        start = np.float32(0.5) * NOISE + np.float32(0.5) * chunk
        whole = backend.sample_actions(*self.PROMPT, NOISE, plan, **rest)
        trace = backend.trace(*self.PROMPT, NOISE, plan, **rest)
        assert [trace[f"mid.time.step{k}"].item() for k in range(3)] == pytest.approx(
            [1 / 2, 1 / 3, 1 / 6]
        )
        v, x = trace["out.v_t.step0"][0], trace["out.x_t.after_step0"][0]
        np.testing.assert_allclose(x, start - v / 6, rtol=0, atol=1e-6)
        images = backend.encode_images(self.PROMPT[0])
        backend.prefill(images, *self.PROMPT[1:])
        np.testing.assert_array_equal(backend.denoise(NOISE, plan, **rest), whole)
        np.testing.assert_array_equal(trace["out.actions_padded"][0], whole)
        cold = backend.denoise(NOISE, Plan(steps=3))
        assert np.abs(cold - whole).max() > 1e-3
        for nothing in ({}, {"prev_chunk_left_over": self.REST[:0]}):
            np.testing.assert_array_equal(backend.denoise(NOISE, plan, **nothing), cold)

    def test_predict_starts_from_the_rest_too(self, backend: TorchBackend) -> None:
        """And is not guided by it."""
        guidance = Guidance(self.REST, 2, 6, "EXP", 10.0)
        plan = Plan(steps=3, warm_start=0.5)
        warm = predict(backend, plan, FRAMES[:2], rtc=guidance)[0]
        other = predict(backend, plan, FRAMES[:2], rtc=replace(guidance, schedule="ONES"))[0]
        assert warm.tobytes() == other.tobytes()
        cold = predict(backend, Plan(steps=3), FRAMES[:2])[0]
        assert np.abs(warm - cold).max() > 1e-3
        assert predict(backend, plan, FRAMES[:2])[0].tobytes() == cold.tobytes()

    @pytest.mark.parametrize(
        "plan, evaluations",
        [
            (None, 4),
            (Plan(steps=7, solver="ab2"), 7),
            (Plan(steps=7, stop=1e9), 2),
            (Plan(steps=7, stop=0.0), 7),
            (Plan(steps=7, adaptive=(-1.0, -1.0)), 2),
            (Plan(steps=7, adaptive=(1.0, -1.0)), 4),
            (Plan(steps=7, adaptive=(1.0, 1.0)), 5),
        ],
    )
    def test_evaluations(self, backend: TorchBackend, plan: Plan | None, evaluations: int) -> None:
        result = backend.predict(FRAMES[:2], TOKENS, STATE, NOISE, plan)
        assert result.evaluations == evaluations

    def test_refuses_where_the_rest_means_something_else(self, source: Source) -> None:
        plan, contract = Plan(warm_start=0.5), source.contract
        check_fit(plan, source.model, contract)
        guided = replace(contract, rtc=replace(contract.rtc, enabled=True))
        with pytest.raises(PlanError, match=r"rtc_config.*remove warm_start"):
            check_fit(plan, source.model, guided)
        with pytest.raises(PlanError, match=r"adapt_to_pi_aloha.*remove warm_start"):
            check_fit(plan, replace(source.model, adapt_to_pi_aloha=True), contract)


def test_a_policy_says_what_it_did(source: Source, backend: TorchBackend) -> None:
    plan = Plan(steps=4, cache=replace(CACHE, cameras=(CAM2,)), stop=1e9)
    policy = Policy(source, backend, plan)
    first = policy.predict(IMAGES, STATE, TASK, seed=1).provenance
    second = policy.predict(IMAGES, STATE, TASK, seed=1).provenance
    assert first["evaluations"] == 2 and first["exact"] is False
    assert first["cache"][CAM2]["why"] == "first" and first["cache"].keys() == {CAM2}
    assert second["cache"] == {
        CAM2: {"keyframe": False, "why": None, "dirty": 0.0, "oldest": 0, "drift": None}
    }
    policy.reset()
    assert policy.predict(IMAGES, STATE, TASK).provenance["cache"][CAM2]["why"] == "first"

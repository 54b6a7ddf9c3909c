"""The ONNX backend on made-up graphs: what goes in, what comes out, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from needs import needs
from policy_helpers import IMAGES, STATE, TASK, tiny_checkpoint

from smolvla_edge.backends.native import load_core
from smolvla_edge.errors import (
    BackendError,
    InputError,
    NonFiniteError,
    PlanError,
)
from smolvla_edge.plan import Cache, Plan, Skip
from smolvla_edge.policy import Policy, load
from smolvla_edge.preprocess import normalize, unnormalize
from smolvla_edge.source import Source, open_source
from smolvla_edge.statistics import FeatureStatistics, Mode

with needs("onnx", "onnxruntime", "torch"):
    import onnx_helpers as made
    from onnx_expected import close, expected, noise_of, observation

    from smolvla_edge.backends import onnx_session
    from smolvla_edge.backends.onnx import OnnxBackend


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny"))


@pytest.fixture(scope="module")
def folder(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write_folder(tmp_path_factory.mktemp("bundle") / "onnx", source)


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load(folder, threads=1)


@pytest.fixture(scope="module")
def engine(policy: Policy) -> OnnxBackend:
    assert isinstance(policy.engine, OnnxBackend)
    return policy.engine


class TestStages:
    def test_image_tokens(self, engine: OnnxBackend) -> None:
        pixels = observation(engine)["pixels"]
        want = pixels.mean((1, 2, 3))[:, None, None] * made.vision_weights(engine.config)
        close(engine.encode_images(pixels), want)

    def test_prefill_and_denoise(self, engine: OnnxBackend) -> None:
        given = observation(engine)
        images = engine.encode_images(given.pop("pixels"))
        count = engine.prefill(images, **given)
        assert count == 2 * images.shape[1] + 5 + 1
        whole = observation(engine)
        close(engine.denoise(noise_of(engine)), expected(engine, whole))

    def test_denoise_needs_a_prefix(self, folder: Path) -> None:
        fresh = load(folder, threads=1).engine
        with pytest.raises(InputError, match="prefill"):
            fresh.denoise(np.zeros((8, 8), np.float32))

    @pytest.mark.parametrize("mask", [(True, True), (True, False), (False, True), (False, False)])
    def test_masked_cameras_and_tokens(self, engine: OnnxBackend, mask: tuple[bool, ...]) -> None:
        given = observation(engine)
        given["camera_mask"] = np.array(mask)
        given["token_mask"] = np.array([True, False, True, True, False])
        got = engine.sample_actions(**given, noise=noise_of(engine))
        close(got, expected(engine, given))

    def test_masked_cameras_are_not_encoded(
        self, engine: OnnxBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        run = engine._vision.run
        monkeypatch.setattr(
            engine._vision, "run", lambda x, keep=(): seen.append(len(x["pixels"])) or run(x, keep)
        )
        given = observation(engine, cameras=3)
        given["camera_mask"] = np.array([True, False, True])
        engine.sample_actions(**given, noise=noise_of(engine))
        assert seen == [2]

    def test_no_token_at_all(self, engine: OnnxBackend) -> None:
        given = observation(engine)
        given["token_mask"][:] = False
        close(engine.sample_actions(**given, noise=noise_of(engine)), expected(engine, given))

    def test_trace(self, engine: OnnxBackend) -> None:
        given = observation(engine)
        given["camera_mask"] = np.array([False, True])
        got = engine.trace(**given, noise=noise_of(engine))
        model = engine.config
        assert set(got) >= {"mid.pixels.1", "out.connector.1", "out.actions", "out.actions_padded"}
        assert "out.connector.0" not in got
        close(got["out.actions_padded"][0], expected(engine, given))
        assert got["out.actions"].shape == (1, model.chunk_size, model.action_dim)
        own = {i * model.expert_layer_stride for i in range(model.expert_layers)}
        own = {layer for layer in own if model.is_self_layer(layer)}
        kv = {int(name.split(".")[2]) for name in got if name.startswith("out.kv.")}
        assert own and kv == own
        rows = got["out.connector.1"].shape[1] + 5 + 1
        key = got[f"out.kv.{min(own)}.key"]
        assert key.shape == (1, model.kv_heads, rows, model.head_dim)
        np.testing.assert_array_equal(2 * key, got[f"out.kv.{min(own)}.value"])


class TestPlans:
    @pytest.mark.parametrize(
        "plan",
        [
            Plan(steps=1),
            Plan(steps=7),
            Plan(steps=3, solver="ab2"),
            Plan(steps=3, schedule=(1, 0.9, 0.2, 0)),
            Plan(steps=4, solver="ab2", schedule=(1, 0.7, 0.6, 0.3, 0), horizon=3),
            Plan(steps=4, warm_start=0.6),
            Plan(steps=4, warm_start=0.6, solver="ab2"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("left_over", [None, 2, 8])
    def test_flow(self, engine: OnnxBackend, plan: Plan, left_over: int | None) -> None:
        given, call = observation(engine), {}
        rng = np.random.default_rng(3)
        if left_over is not None:
            call = {
                "prev_chunk_left_over": rng.standard_normal((left_over, 6)).astype(np.float32),
                "inference_delay": 1,
                "execution_horizon": 4,
            }
        got = engine.sample_actions(**given, noise=noise_of(engine), plan=plan, **call)
        guidance = engine.contract.guidance(
            call.get("prev_chunk_left_over"), call.get("inference_delay", 0), 4
        )
        close(got, expected(engine, given, plan, guidance))

    @pytest.mark.parametrize(
        "change, words",
        [
            ({"cache": Cache(0.1, 2, 2)}, "cache="),
            ({"adaptive": (0.9, 0.5)}, "adaptive="),
            ({"stop": 0.1}, "stop="),
            ({"late_state": True}, "late_state="),
            ({"skip": Skip(reuse=((), (1,), (), ()))}, "skip.reuse"),
            ({"skip": Skip(vlm=(1,))}, "skip.vlm=1"),
            ({"skip": Skip(vision=(0,))}, "skip.vision=0"),
            ({"skip": Skip(expert=(2,))}, "skip.expert=2"),
            ({"horizon": 9}, "horizon"),
        ],
    )
    def test_refused(
        self, engine: OnnxBackend, folder: Path, change: dict[str, Any], words: str
    ) -> None:
        plan = replace(Plan(steps=4), **change)
        for call in (
            lambda: load(folder, threads=1, plan=plan),
            lambda: engine.sample_actions(**observation(engine), noise=noise_of(engine), plan=plan),
        ):
            with pytest.raises(PlanError, match=words):
                call()

    def test_a_folder_of_a_plan(self, source: Source, tmp_path: Path) -> None:
        """Its layers are what it has; everything else of the plan is free."""
        plan = Plan(steps=2, skip=Skip(vlm=(1,), expert=(2,)))
        folder = made.write_folder(tmp_path / "onnx", source, manifest={"plan": plan})
        with pytest.raises(
            PlanError, match=r"skip\.vlm=1,skip\.expert=2.*'exact'.*plan='exported'"
        ):
            load(folder, threads=1)
        loaded = load(folder, threads=1, plan="exported")
        assert loaded.plan == plan
        assert loaded.predict(IMAGES, STATE, TASK, seed=1).provenance["evaluations"] == 2
        longer = load(folder, threads=1, plan=replace(plan, steps=5))
        assert longer.predict(IMAGES, STATE, TASK, seed=1).provenance["evaluations"] == 5

    def test_a_flow_of_one_size(self, source: Source, tmp_path: Path) -> None:
        manifest = made.make_manifest(source)
        flow = manifest.graphs["flow"]
        ports = [replace(p, shape=(4, 5)) if p.name == "schedule" else p for p in flow.inputs]
        graphs = {**manifest.graphs, "flow": replace(flow, inputs=tuple(ports))}
        folder = made.write_folder(tmp_path / "onnx", source, manifest={"graphs": graphs})
        with pytest.raises(PlanError, match="steps=4 alone, got 5"):
            load(folder, threads=1, plan="steps=5")


class TestPredict:
    def test_raw_frames_to_robot_units(self, policy: Policy, engine: OnnxBackend) -> None:
        model, contract = engine.config, policy.contract
        noise = noise_of(engine)
        chunk = policy.predict(IMAGES, STATE, TASK, noise=noise)
        core = load_core()
        state = np.zeros(model.max_state_dim, np.float32)
        state[:6] = normalize(STATE, contract.state)
        given = {
            "pixels": np.stack([core.letterbox(f, *model.resize) for f in IMAGES.values()]),
            "camera_mask": np.ones(2, bool),
            "tokens": policy._encode(TASK).ids,
            "state": state,
        }
        given["token_mask"] = np.ones(len(given["tokens"]), bool)
        want = expected(engine, given)[:, : model.action_dim]
        close(chunk.normalized, want)
        close(chunk.actions, unnormalize(want, contract.action))
        assert set(chunk.timings) == {"preprocess", "vision", "prefix", "flow", "total"}
        assert chunk.provenance["backend"] == "onnx"
        assert chunk.provenance["exact"] is True

    def test_a_camera_less(self, policy: Policy, engine: OnnxBackend, folder: Path) -> None:
        """A blank camera counts for nothing."""
        name, frame = next(iter(IMAGES.items()))
        allowing = load(folder, threads=1, allow_missing_cameras=True)
        chunk = allowing.predict({name: frame}, STATE, TASK, noise=noise_of(engine))
        args = policy._encode(TASK).ids, STATE, noise_of(engine)
        result = engine.predict([frame, None], *args)
        np.testing.assert_allclose(result.normalized, chunk.normalized, atol=1e-6)
        assert result.cache == (None, None)

    def test_lerobots_methods_and_chunking(self, policy: Policy, engine: OnnxBackend) -> None:
        chunk = policy.predict(IMAGES, STATE, TASK, seed=3)
        again = policy.predict(IMAGES, STATE, TASK, seed=3)
        assert again.actions.tobytes() == chunk.actions.tobytes()
        rest = chunk.normalized[3:] + 1
        call = {"prev_chunk_left_over": rest, "inference_delay": 2}
        pulled = policy.predict(IMAGES, STATE, TASK, seed=3, **call)
        moved = np.abs(pulled.normalized - chunk.normalized)
        assert moved[:2].max() > 0.1 and moved[5:].max() == 0  # nothing was left there
        policy.reset(seed=3)
        np.testing.assert_array_equal(policy.step(IMAGES, STATE, TASK), chunk.actions[0])

    def test_concurrent_calls_give_the_same_bytes(self, policy: Policy) -> None:
        want = policy.predict(IMAGES, STATE, TASK, seed=4).actions.tobytes()
        with ThreadPoolExecutor(4) as pool:
            chunks = pool.map(lambda _: policy.predict(IMAGES, STATE, TASK, seed=4), range(12))
            assert {chunk.actions.tobytes() for chunk in chunks} == {want}

    def test_warm_up(self, folder: Path) -> None:
        done = []
        loaded = load(folder, threads=1)
        loaded.warm_up(progress=lambda *n: done.append(n))
        assert done == [(1, 1)] and loaded.engine.info()["ready"]

    def test_aloha(self, source: Source, tmp_path: Path) -> None:
        """The conversions stand between normalisation and the model, on both sides."""
        from smolvla_edge.aloha import actions_to_aloha, state_from_aloha

        sizes = {"state_dim": 14, "action_dim": 14, "max_state_dim": 16, "max_action_dim": 16}
        model = replace(source.model, **sizes, adapt_to_pi_aloha=True)
        same = FeatureStatistics(Mode.IDENTITY)
        contract = replace(source.contract, **sizes, state=same, action=same)
        changed = replace(source, model=model, contract=contract)
        engine: Any = load(made.write_folder(tmp_path / "onnx", changed), threads=1).engine
        state = np.linspace(-0.9, 0.9, 14, dtype=np.float32)
        args = list(IMAGES.values()), np.array([3]), state, noise_of(engine)
        converted = engine.predict(*args)
        engine.config = replace(engine.config, adapt_to_pi_aloha=False)
        before = engine.predict(args[0], args[1], state_from_aloha(state), args[3])
        np.testing.assert_allclose(
            converted.normalized, actions_to_aloha(before.normalized), atol=1e-5
        )


class TestInputs:
    """Refused before ONNX Runtime sees them."""

    @pytest.mark.parametrize(
        "change, words",
        [
            ({"pixels": np.zeros((2, 3, 64, 64))}, "pixels: expected float32"),
            ({"pixels": np.zeros((2, 64, 64, 3), np.float32)}, "pixels: expected"),
            ({"pixels": np.full((2, 3, 64, 64), np.nan, np.float32)}, "pixels: .*NaN"),
            ({"pixels": [[0.0]]}, "pixels: expected a numpy array"),
            ({"camera_mask": np.ones(3, bool)}, "camera_mask"),
            ({"camera_mask": np.ones(2, np.int64)}, "camera_mask"),
            ({"tokens": np.zeros((1, 5), np.int64)}, "tokens"),
            ({"tokens": np.zeros(5, np.int32)}, "tokens: expected int64"),
            ({"tokens": np.full(5, -1)}, "ids from 0"),
            ({"tokens": np.full(5, 1 << 40)}, "ids from 0"),
            ({"token_mask": np.ones(4, bool)}, "token_mask"),
            ({"tokens": np.zeros(99, np.int64), "token_mask": np.ones(99, bool)}, "at most"),
            ({"state": np.zeros(6, np.float32)}, "state: expected float32"),
            ({"state": np.full(10, np.inf, np.float32)}, "state: .*infinity"),
            ({"noise": np.zeros((7, 8), np.float32)}, "noise: expected at least"),
            ({"noise": np.zeros((8, 7), np.float32)}, "noise"),
            ({"noise": np.full((8, 8), np.nan, np.float32)}, "noise: .*NaN"),
        ],
    )
    def test_refused(
        self,
        engine: OnnxBackend,
        change: dict[str, Any],
        words: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(onnx_session.Session, "run", lambda *_: pytest.fail("it ran"))
        given = {**observation(engine), "noise": noise_of(engine), **change}
        with pytest.raises(InputError, match=words):
            engine.sample_actions(**given)

    def test_padding_does_not_count(self, engine: OnnxBackend) -> None:
        """LeRobot pads to the longest prompt of a batch; only what is valid has a limit."""
        given = observation(engine)
        most = engine.config.tokenizer_max_length
        tokens = np.zeros(most + 20, np.int64)
        mask = np.arange(len(tokens)) < most
        given |= {"tokens": tokens, "token_mask": mask}
        engine.sample_actions(**given, noise=noise_of(engine))

    def test_predict(self, engine: OnnxBackend) -> None:
        frames, noise, ids = list(IMAGES.values()), noise_of(engine), np.array([1, 2])
        with pytest.raises(InputError, match="state"):
            engine.predict(frames, ids, STATE[:5], noise)
        with pytest.raises(InputError, match="ids from 0"):
            engine.predict(frames, np.array([-1]), STATE, noise)
        with pytest.raises(InputError, match="at least one camera"):
            engine.predict([None, None], ids, STATE, noise)

    def test_nan_from_the_graph(self, engine: OnnxBackend) -> None:
        """Sums that overflow: no action is returned."""
        given = observation(engine)
        given["state"][:] = 3e38
        with pytest.raises(NonFiniteError), np.errstate(all="ignore"):
            engine.sample_actions(**given, noise=noise_of(engine))

    def test_what_the_runtime_raises(self, engine: OnnxBackend) -> None:
        """Its own exceptions leave as ours, with what failed."""
        given = observation(engine)
        del given["pixels"]
        few = np.zeros((2, 1, engine.config.text_width), np.float32)  # tokens of an image
        engine.prefill(few, **given)
        with pytest.raises(BackendError, match=r"could not run flow\.onnx: .*Mul"):
            engine.denoise(noise_of(engine))

"""The ONNX backend on made-up graphs: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from needs import needs
from policy_helpers import IMAGES, STATE, TASK, tiny_checkpoint

import smolvla_edge
from smolvla_edge import ort_ops
from smolvla_edge.backends.native import load_core
from smolvla_edge.errors import (
    BackendError,
    ExportError,
    InputError,
    MissingExtraError,
    NonFiniteError,
    PlanError,
    SmolVLAEdgeError,
)
from smolvla_edge.plan import Cache, Plan, Skip
from smolvla_edge.policy import Policy, load
from smolvla_edge.preprocess import normalize, unnormalize
from smolvla_edge.rtc import Guidance
from smolvla_edge.source import Source, open_source
from smolvla_edge.statistics import FeatureStatistics, Mode

with needs("onnx", "onnxruntime"):
    import onnx_helpers as made
    import onnxruntime

    from smolvla_edge.backends import onnx_session
    from smolvla_edge.backends.onnx import IMPLEMENTED, OnnxBackend

TOLERANCE = 1e-5  # a few float32 operations, of numbers near 1


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


def observation(engine: OnnxBackend, cameras: int = 2) -> dict[str, Any]:
    """Arguments of `sample_actions` but noise."""
    rng, model = np.random.default_rng(1), engine.config
    width, height = model.resize or (model.image_size,) * 2
    pixels = rng.uniform(0, 1, (cameras, 3, height, width)).astype(np.float32)
    return {
        "pixels": pixels * np.linspace(-1, 1, cameras, dtype=np.float32)[:, None, None, None],
        "camera_mask": np.ones(cameras, bool),
        "tokens": rng.integers(0, model.vocab, 5),
        "token_mask": np.ones(5, bool),
        "state": rng.standard_normal(model.max_state_dim).astype(np.float32),
    }


def noise_of(engine: OnnxBackend) -> np.ndarray:
    rng = np.random.default_rng(2)
    shape = engine.config.chunk_size, engine.config.max_action_dim
    return rng.standard_normal(shape).astype(np.float32)


def expected(
    engine: OnnxBackend,
    given: dict[str, Any],
    plan: Plan | None = None,
    guidance: Guidance | None = None,
) -> np.ndarray:
    """What the made-up graphs are to give, all of it computed here."""
    model, plan = engine.config, plan or Plan.exact(engine.config.num_steps)
    mask = given["camera_mask"]
    images = given["pixels"].mean((1, 2, 3))[:, None, None] * made.vision_weights(model)
    images[~mask] = 0
    tokens = given["tokens"][given["token_mask"]]
    keys, valid = made.keys_of(model, images, mask, tokens, given["state"])
    start = noise_of(engine)[: plan.rows(model.chunk_size)]
    return made.integrated(keys, valid, start, plan, model.chunk_size, guidance)


def close(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape and got.dtype == np.float32
    assert np.abs(got - want).max() <= TOLERANCE * max(1.0, float(np.abs(want).max()))


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


class TestSettings:
    def test_info(self, engine: OnnxBackend) -> None:
        info = engine.info()
        assert info["onnxruntime"] == onnxruntime.__version__
        assert list(info["providers"]) == ["vision", "prefix", "flow"]
        assert list(info["providers"].values()) == [["CPUExecutionProvider"]] * 3
        assert (info["threads"], info["accuracy_level"], info["lossy"]) == (1, 0, [])
        assert info["custom_ops"] is None and info["ready"]
        assert set(info["plan_fields"]) == IMPLEMENTED

    def test_threads(self, folder: Path) -> None:
        expected = load_core().cpu_info()["threads"]
        assert load(folder).engine.info()["threads"] == expected
        engine: Any = load(folder, threads=2).engine
        options = engine._vision._session.get_session_options()
        assert options.intra_op_num_threads == 2
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        assert options.get_session_config_entry("session.load_model_format") == "ONNX"
        for wrong in (0, True, "2"):
            with pytest.raises(BackendError, match="threads"):
                load(folder, threads=wrong)  # type: ignore[arg-type]

    def test_lossy_arithmetic_is_not_exact(self, folder: Path) -> None:
        loaded = load(folder, threads=1, accuracy_level=4)
        assert loaded.provenance["exact"] is False
        assert loaded.provenance["accuracy_level"] == 4
        assert "int8" in loaded.engine.info()["lossy"][0]
        engine: Any = loaded.engine
        key = "session.qdq_matmulnbits_accuracy_level"
        assert engine._flow._session.get_session_options().get_session_config_entry(key) == "4"

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"accuracy_level": 1}, "accuracy_level"),
            ({"custom_ops": 1}, "custom_ops"),
            ({"allow_fallback": "yes"}, "allow_fallback"),
            ({"custom_ops": True}, "exported without nodes"),
            ({"device": "tpu"}, "device"),
            ({"packed_cache": True}, "packed_cache"),
            ({"backend": "torch"}, "export folder"),
            ({"backend": "native"}, "export folder"),
            ({"rename": {"top": "nowhere"}}, "nowhere"),
            ({"revision": "main"}, "local folder"),
        ],
    )
    def test_refused(self, folder: Path, options: dict[str, Any], words: str) -> None:
        with pytest.raises(SmolVLAEdgeError, match=words):
            load(folder, **options)

    @pytest.mark.parametrize("name", ["accuracy_level", "custom_ops", "allow_fallback"])
    def test_others_have_no_such_option(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(BackendError, match=f"{name}: expected backend='onnx'"):
            load(tmp_path, **{name: 4 if name == "accuracy_level" else True})

    @pytest.mark.parametrize("backend", ["auto", "native", "torch"])
    def test_tensorrt_is_of_this_backend(self, backend: str, tmp_path: Path) -> None:
        with pytest.raises(BackendError, match="tensorrt"):
            load(tmp_path, backend=backend, device="tensorrt")

    def test_the_folder_of_a_bundle(self, folder: Path, tmp_path: Path) -> None:
        loaded = load(folder.parent, backend="onnx", threads=1)
        assert loaded.engine.name == "onnx"
        with pytest.raises(BackendError, match="smolvla-edge export"):
            load(tmp_path, backend="onnx")

    def test_names_tokenizer_and_statistics(self, folder: Path, tmp_path: Path) -> None:
        stats = {n: {"mean": [0.0] * 6, "std": [1.0] * 6} for n in ("observation.state", "action")}
        (tmp_path / "stats.json").write_text(json.dumps(stats))
        names = dict(zip(("top", "wrist"), IMAGES, strict=True))
        loaded = load(folder, threads=1, rename=names, stats=tmp_path / "stats.json")
        frames = dict(zip(names, IMAGES.values(), strict=True))
        chunk = loaded.predict(frames, STATE, TASK, seed=1)
        np.testing.assert_array_equal(chunk.actions, chunk.normalized)

    def test_a_fork_is_refused(self, engine: OnnxBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "getpid", lambda: engine._process + 1)
        with pytest.raises(BackendError, match="fork"):
            engine.encode_images(observation(engine)["pixels"])


class TestCustomOps:
    """The library is another's: here is only who asks for it, and when."""

    @pytest.fixture
    def marked(self, source: Source, tmp_path: Path) -> Path:
        return made.write_folder(tmp_path / "onnx", source, manifest={"custom_ops": True})

    def test_without_one(self, marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ort_ops, "LIBRARY", "nothing.so")
        assert load(marked, threads=1).engine.info()["custom_ops"] is None
        with pytest.raises(BackendError, match=r"custom_ops=True: .*nothing\.so"):
            load(marked, threads=1, custom_ops=True)

    def test_a_library_that_is_none(
        self, marked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library = tmp_path / "broken.so"
        library.write_bytes(b"no library")
        monkeypatch.setattr(onnx_session, "library_path", lambda: library)
        with pytest.raises(BackendError, match=r"could not load the custom-op library.*broken\.so"):
            load(marked, threads=1)
        assert load(marked, threads=1, custom_ops=False).engine.info()["custom_ops"] is None


class TestProviders:
    @pytest.mark.parametrize("device", ["cuda", "tensorrt"])
    def test_a_missing_one_is_an_error(self, folder: Path, device: str) -> None:
        wanted = onnx_session.PROVIDERS[device][0]
        if wanted in onnxruntime.get_available_providers():
            pytest.skip(f"this ONNX Runtime has {wanted}")
        with pytest.raises(BackendError, match=f"expected an ONNX Runtime with {wanted}"):
            load(folder, device=device)
        loaded = load(folder, device=device, allow_fallback=True)
        assert loaded.provenance["providers"]["flow"] == ["CPUExecutionProvider"]
        assert loaded.engine.info()["ready"]

    def test_one_that_does_not_start(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """ONNX Runtime warns, and gives a session without it."""
        there = [*onnx_session.PROVIDERS["cuda"]]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
        refused = pytest.raises(BackendError, match=r"could not be started.*CPUExecutionProvider")
        with refused, pytest.warns(UserWarning):
            load(folder, device="cuda")

    def test_one_that_takes_nothing(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx_session, "PROVIDERS", {"cpu": ("CPUExecutionProvider",)})
        monkeypatch.setattr(onnx_session, "_assigned", lambda session: {"OtherProvider": 7})
        with pytest.raises(BackendError, match="takes no node"):
            load(folder, threads=1)

    def test_float32_stays_float32_on_a_gpu(self) -> None:
        assert onnx_session._PROVIDER_OPTIONS["CUDAExecutionProvider"] == {"use_tf32": "0"}


class TestGraphs:
    def test_other_inputs_than_the_manifest_says(self, source: Source, tmp_path: Path) -> None:
        graphs = made.make_graphs(source.model)
        graph = graphs["vision"].graph
        graph.input[0].name = graph.node[0].input[0] = "frames"
        folder = made.write_folder(tmp_path / "onnx", source, graphs)
        with pytest.raises(ExportError, match=r"expected the inputs .*pixels.* got .*frames"):
            load(folder, threads=1)

    def test_a_graph_that_cannot_be_loaded(self, source: Source, tmp_path: Path) -> None:
        graphs = made.make_graphs(source.model)
        graphs["flow"].graph.node[0].op_type = "NoSuchOperator"
        folder = made.write_folder(tmp_path / "onnx", source, graphs)
        with pytest.raises(BackendError, match=r"could not load .*flow\.onnx.*NoSuchOperator"):
            load(folder, threads=1)

    def test_fixed_sizes_are_padded(self, source: Source, tmp_path: Path) -> None:
        """Graphs for four cameras and 48 tokens take less."""
        manifest = made.make_manifest(source)
        graphs = dict(manifest.graphs)
        sizes = {"cameras": 4, "l": 48}
        for name in ("vision", "prefix"):
            inputs = [
                replace(port, shape=tuple(sizes.get(n, n) for n in port.shape))  # type: ignore[arg-type]
                for port in graphs[name].inputs
            ]
            graphs[name] = replace(graphs[name], inputs=tuple(inputs))
        folder = made.write_folder(tmp_path / "onnx", source, manifest={"graphs": graphs})
        engine: Any = load(folder, threads=1).engine
        given = observation(engine)
        close(engine.sample_actions(**given, noise=noise_of(engine)), expected(engine, given))
        with pytest.raises(InputError, match="takes float32"):
            engine.encode_images(observation(engine, cameras=5)["pixels"])


class TestImports:
    def test_neither_torch_nor_onnx(self, folder: Path) -> None:
        """A chunk, in a process that cannot import them."""
        code = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnxscript"):
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
import numpy as np
import smolvla_edge as se

policy = se.load({str(folder)!r}, threads=1)
frames = {{name: np.zeros((48, 64, 3), np.uint8) for name in policy.contract.cameras}}
print(policy.predict(frames, np.zeros(6, np.float32), "pick up", seed=1).actions.shape)
"""
        root = Path(smolvla_edge.__file__).parents[1]
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "(8, 6)"

    def test_without_onnxruntime(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingExtraError, match="pip install"):
            load(folder)

    def test_an_old_onnxruntime(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnxruntime, "__version__", "1.22.9")
        with pytest.raises(MissingExtraError, match=r"1\.23 or newer, got 1\.22"):
            load(folder)

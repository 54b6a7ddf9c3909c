"""What the ONNX backend asks of ONNX Runtime, and holds it to: options, providers, graphs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    SmolVLAEdgeError,
)
from smolvla_edge.policy import Policy, load
from smolvla_edge.source import Source, open_source

with needs("onnx", "onnxruntime", "torch"):
    import onnx_helpers as made
    import onnxruntime
    from onnx_expected import close, expected, noise_of, observation

    from smolvla_edge.backends import onnx_session
    from smolvla_edge.backends.onnx import IMPLEMENTED, OnnxBackend


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

"""`smolvla-edge export`: the verb from the command line to a folder that runs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import refused
from needs import needs
from policy_helpers import IMAGES, STATE, TASK, tiny_checkpoint
from quantize_helpers import rounded_bundles

import smolvla_edge
from smolvla_edge.cli import output
from smolvla_edge.onnx_folder import read_export
from smolvla_edge.onnx_manifest import FORMS

with needs("torch", "onnx", "onnxscript", "onnxruntime"):
    import onnx

    from smolvla_edge.export import exporter
    from smolvla_edge.export.audit import each_graph


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cli_export")
    checkpoint = tiny_checkpoint(folder / "checkpoint")
    return {"checkpoint": checkpoint, **rounded_bundles(checkpoint)}


@pytest.fixture(scope="module")
def exported(bundles: dict[str, Path]) -> dict[str, Any]:
    """Made by the verb, once: explicit MatMulNBits, pixels outside, into the bundle."""
    from smolvla_edge.cli.app import app

    arguments = ["export", str(bundles["balanced"]), "--form", "matmulnbits", "--no-custom-ops",
                 "--letterbox", "outside", "--plan", "steps=3", "--threads", "1",
                 "--json"]  # fmt: skip
    import contextlib
    import io

    written = io.StringIO()
    with contextlib.redirect_stdout(written), pytest.raises(SystemExit) as exit_:
        app(args=arguments, prog_name="smolvla-edge")
    assert not exit_.value.code
    result: dict[str, Any] = json.loads(written.getvalue())
    return result


class TestExport:
    def test_where_and_what(self, exported: dict[str, Any], bundles: dict[str, Path]) -> None:
        folder = bundles["balanced"] / "onnx"
        assert exported["folder"] == str(folder)
        export = read_export(folder)
        export.verify_files()
        manifest = export.manifest
        assert (manifest.form, manifest.custom_ops) == ("matmulnbits", False)
        assert manifest.plan.steps == 3
        # What started this process may have been given no words, as by a worker of pytest-xdist.
        assert manifest.provenance["command"].startswith("smolvla-edge ")
        assert exported["bytes"] == sum(record.nbytes for record in manifest.files.values())
        assert exported["verification"]["passed"] and exported["precision"] == manifest.precision

    def test_what_was_asked_is_in_the_graphs(
        self, exported: dict[str, Any], bundles: dict[str, Path]
    ) -> None:
        folder = Path(exported["folder"])
        domains, inputs = set(), set()
        for name in ("vision", "prefix", "flow", "policy"):
            model = onnx.load(folder / f"{name}.onnx", load_external_data=False)
            domains |= {node.domain for graph in each_graph(model.graph) for node in graph.node}
            inputs = {value.name for value in model.graph.input}
            assert not model.functions
        assert domains == {"", "com.microsoft"}
        assert "pixels" in inputs

    def test_it_runs(self, exported: dict[str, Any], bundles: dict[str, Path]) -> None:
        policy = smolvla_edge.load(bundles["balanced"], backend="onnx", plan="exported", threads=1)
        native = smolvla_edge.load(bundles["balanced"], plan="steps=3", threads=1)
        ours = policy.predict(IMAGES, STATE, TASK, seed=7).actions
        theirs = native.predict(IMAGES, STATE, TASK, seed=7).actions
        assert ours.shape == theirs.shape
        assert 0 < abs(ours - theirs).max() < 0.1 * abs(theirs).max(), "rows are rounded in one"

    def test_a_folder_that_is_there_is_kept(
        self, cli: Any, exported: dict[str, Any], bundles: dict[str, Path]
    ) -> None:
        refused(cli("export", bundles["balanced"]), "exists", "--force")
        read_export(exported["folder"])

    def test_the_table(
        self,
        cli: Any,
        exported: dict[str, Any],
        bundles: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        _prepared(monkeypatch, Path(exported["folder"]))
        result = cli("export", bundles["balanced"], tmp_path / "out", "--threads", "1")
        assert result.code == 0, result.err
        for word in ("PASSED", "actions, robot units", "policy", "MB", "the bundle, native"):
            assert word in result.out
        assert "measuring: reference" in result.err and "made-up" in result.err

    def test_without_verification(
        self,
        cli: Any,
        exported: dict[str, Any],
        bundles: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        _prepared(monkeypatch, Path(exported["folder"]))
        result = cli("export", bundles["balanced"], tmp_path / "out", "--no-verify", "--json")
        assert result.code == 0 and result.json["verification"] is None
        assert "not verified" in result.err
        assert not (tmp_path / "out" / "CARD.md").exists()

    def test_a_failure_is_exit_code_1_and_nothing_stays(
        self,
        cli: Any,
        exported: dict[str, Any],
        bundles: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """One bit of a file of weights, wherever it is."""
        _prepared(monkeypatch, Path(exported["folder"]), damage="flow.weights")
        result = cli("export", bundles["balanced"], tmp_path / "out")
        assert result.code == output.FAILED and result.out == ""
        assert "expected" in result.err and "Traceback" not in result.err
        assert list(tmp_path.iterdir()) == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "named"),
        [
            (["--form", "sums"], ["form", *FORMS]),
            (["--precision", "int2"], ["precision", "int8"]),
            (["--format", "tflite"], ["onnx"]),
            (["--letterbox", "beside"], ["inside"]),
            (["--frame", "64"], ["--frame", "HEIGHTxWIDTH"]),
            (["--accuracy-level", "4"], ["matmulnbits"]),
            (["--form", "matmulnbits", "--accuracy-level", "1"], ["--accuracy-level"]),
            (["--observations", "0"], ["--observations"]),
            (["--precision", "int4"], ["quantize"]),
            (["--plan", "cache.threshold=0.1"], ["cache"]),
            (["--plan", "stop=0.1"], ["stop"]),
        ],
    )
    def test_before_any_work(
        self, cli: Any, bundles: dict[str, Path], tmp_path: Path, words: list[str], named: list[str]
    ) -> None:
        refused(cli("export", bundles["checkpoint"], tmp_path / "out", *words), *named)
        assert list(tmp_path.iterdir()) == []

    def test_a_checkpoint_needs_a_name(self, cli: Any, bundles: dict[str, Path]) -> None:
        refused(cli("export", bundles["checkpoint"]), "OUT")

    def test_int8_of_a_bundle_that_has_none(
        self, cli: Any, bundles: dict[str, Path], tmp_path: Path
    ) -> None:
        refused(cli("export", bundles["int8"], tmp_path / "out", "--precision", "int4"), "8-bit")

    def test_an_export_is_no_source(
        self, cli: Any, exported: dict[str, Any], tmp_path: Path
    ) -> None:
        refused(cli("export", exported["folder"], tmp_path / "out"), "export folder")

    def test_without_the_extra(
        self,
        cli: Any,
        bundles: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from smolvla_edge.export import extras

        monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "onnxscript" else 1)
        result = cli("export", bundles["checkpoint"], tmp_path / "out")
        refused(result, "onnxscript", "smolvla-edge[export]")


def test_asking_for_help_imports_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys; from smolvla_edge.cli.app import app\n"
        "try:\n    app(['export', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'onnx_ir'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)


def _prepared(monkeypatch: pytest.MonkeyPatch, prepared: Path, damage: str | None = None) -> None:
    """Let a folder that is there stand for what tracing makes."""

    def write(_: Any, folder: Path, *__: Any) -> Any:
        for name in read_export(prepared).manifest.files:
            if name not in ("VERIFICATION.json", "CARD.md"):
                shutil.copyfile(prepared / name, folder / name)
        if damage is not None:
            data = bytearray((folder / damage).read_bytes())
            data[len(data) // 2] ^= 0x40
            (folder / damage).write_bytes(data)
        return read_export(prepared).manifest

    monkeypatch.setattr(exporter, "_write", write)

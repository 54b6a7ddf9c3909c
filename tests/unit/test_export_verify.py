"""Verifying an export: what passes, what is found, and that nothing is left of what fails."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_helpers import CAMERAS, broken, change_bytes
from needs import needs

from smolvla_edge.errors import VerificationError
from smolvla_edge.onnx_folder import read_export
from smolvla_edge.ort_ops import library_path
from smolvla_edge.plan import Plan
from smolvla_edge.source import open_source

with needs("torch", "onnx", "onnxscript", "onnxruntime"):
    from smolvla_edge.export import bounds, exporter, verify
    from smolvla_edge.export.measure import Found, apart
    from smolvla_edge.export.observed import Observed
    from smolvla_edge.export.reference import float_tensors
    from smolvla_edge.export.verify import Settings, verify_folder

SETTINGS = Settings(observations=4, threads=1)


@pytest.fixture(scope="module")
def reports(exports: Any) -> Any:
    """name -> (VERIFICATION.json read, CARD.md) of an export."""
    made: dict[str, Any] = {}

    def get(name: str) -> tuple[dict[str, Any], str]:
        if name not in made:
            files = verify_folder(exports(name), open_source(exports.source(name)), SETTINGS)
            made[name] = json.loads(files["VERIFICATION.json"]), files["CARD.md"]
        return made[name]

    return get


class TestReport:
    @pytest.mark.parametrize("name", ["float32", "codes"])
    def test_every_stage_is_within_its_bound(self, reports: Any, name: str) -> None:
        report, _ = reports(name)
        assert [row["stage"] for row in report["stages"]] == list(bounds.STAGES)
        for row in report["stages"]:
            assert 0 <= row["relative"] <= row["bound"] <= 1e-4
        # Something was compared: two programs that round differently are not equal to the bit.
        assert report["stages"][-1]["relative"] > 0
        assert report["passed"] and not report["lossy"]
        for row in report["policy_graph"]:
            assert row["relative"] <= row["bound"]

    def test_float16_is_held_to_a_ratio(self, reports: Any) -> None:
        if version("onnxruntime").startswith("1.23."):  # its Attention of float16 gives NaN
            with pytest.raises(VerificationError, match="finite"):
                reports("float16")
            return
        report, card = reports("float16")
        rows = {row["stage"]: row for row in report["stages"]}
        for stage in (bounds.IMAGE_TOKENS, bounds.KEYS_VALUES, bounds.NORMALIZED):
            assert rows[stage]["sqnr_db"] >= rows[stage]["floor_db"] == bounds.FLOAT16_DB
            assert rows[stage]["bound"] is None
        assert rows[bounds.NORMALIZED]["relative"] > 1e-5, "float16 was not what ran"
        assert "float16" in card.split("## Lossy")[1]

    def test_the_kinds_of_observations(self, reports: Any) -> None:
        seen = reports("float32")[0]["observations"]
        assert seen["tokens"] == [1, 12, 24, 48] and seen["count"] == 4
        assert {"288x512", "640x480"} <= set(seen["frames"]), "a wide and a tall one"
        assert seen["with_a_masked_camera"] == 4, "the policy's own empty camera"

    def test_codes_are_reported_every_way(self, reports: Any) -> None:
        report, card = reports("codes")
        assert report["audit"]["weights"]["codes_compared"] == 60
        level, native = report["accuracy_level_4"], report["bundle_native"]
        for way in (level, native):
            share = way["action_error"]["rms_of_range"]
            assert math.isfinite(share) and share > 1e-4, "rows were not rounded"
        assert "int8" in level["lossy"] and "accuracy_level 4" in card

    def test_our_operators_ran(self, reports: Any) -> None:
        try:
            library_path()
        except Exception:
            pytest.skip("this build has no operators for ONNX Runtime")
        report, _ = reports("codes")
        flow = report["audit"]["operators"]["flow"]
        assert flow["products_of_codes"] == flow["ran"]["MatMulNBits"] == 24
        assert flow["ran_with_library"]["LinearW4"] == 24
        assert flow["ran_with_library"]["DenoiseStep"] == 1
        assert report["custom_operators"]["rounds_rows_to_int8"]
        exact = reports("float32")[0]["custom_operators"]
        assert all(row["relative"] <= bounds.CUSTOM_FLOAT32 for row in exact["against_standard"])

    def test_bytes_by_type(self, reports: Any, exports: Any) -> None:
        report, _ = reports("codes")
        weights = report["audit"]["weights"]
        sizes = weights["bytes_by_dtype"]
        assert sum(sizes.values()) == sum(item["bytes"] for item in weights["tensors"].values())
        stored = sum(path.stat().st_size for path in exports("codes").glob("*.weights"))
        assert 0 <= stored - sum(sizes.values()) < 64 * len(weights["tensors"]), "alignment alone"

    def test_the_same_again(self, reports: Any, exports: Any) -> None:
        again = verify_folder(exports("float32"), open_source(exports.source("float32")), SETTINGS)
        assert json.loads(again["VERIFICATION.json"]) == reports("float32")[0]

    def test_as_many_observations_as_asked(self, exports: Any) -> None:
        source = open_source(exports.source("float32"))
        files = verify_folder(exports("float32"), source, Settings(observations=9, threads=1))
        report = json.loads(files["VERIFICATION.json"])
        assert report["observations"]["count"] == 9 and report["traced"] == 4
        assert report["stages"][-1]["observations"] == 9
        assert "9 made-up observations" in files["CARD.md"]


class TestCard:
    @pytest.mark.parametrize("name", ["float32", "codes"])
    def test_its_snippet_runs(self, reports: Any, exports: Any, tmp_path: Path, name: str) -> None:
        """As it stands, in the folder, with three packages."""
        card = reports(name)[1]
        (snippet,) = re.findall(r"```python\n(.*?)```", card, re.S)
        assert len(snippet.splitlines()) <= 25
        without = "import sys\nassert not {'torch', 'smolvla_edge', 'onnx'} & sys.modules.keys()\n"
        ran = subprocess.run(
            [sys.executable, "-I", "-c", snippet + without],
            cwd=exports(name), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip() == "(8, 6)"

    def test_its_tables(self, reports: Any, exports: Any) -> None:
        card = reports("codes")[1]
        manifest = read_export(exports("codes")).manifest
        for graph in manifest.graphs.values():
            assert f"| {graph.file} | {graph.nodes} |" in card
        for word in ("INT4", "INT8", "CUDA, TensorRT, Jetson", *bounds.STAGES):
            assert word in card


class TestFound:
    """A fault anywhere is found, and says where, how large and what was allowed."""

    @pytest.fixture
    def unaudited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No weight is compared by itself: measuring alone has to find what is wrong."""
        nothing = {"bytes_by_dtype": {}, "codes_compared": 0, "floats_compared": 0, "tensors": {}}
        monkeypatch.setattr(verify, "audit_weights", lambda *_: nothing)

    def _refused(self, exports: Any, name: str, folder: Path, *words: str) -> None:
        with pytest.raises(VerificationError) as caught:
            verify_folder(folder, open_source(exports.source(name)), SETTINGS)
        for word in words:
            assert word in str(caught.value)

    @pytest.mark.parametrize(
        ("graph", "weight", "stage"),
        [
            ("vision", "vision.patch.weight", bounds.IMAGE_TOKENS),
            ("prefix", "state_in.weight", bounds.KEYS_VALUES),
            ("flow", "action_out.weight", bounds.NORMALIZED),
        ],
    )
    def test_a_stage_that_computes_something_else(
        self,
        exports: Any,
        tmp_path: Path,
        unaudited: None,
        graph: str,
        weight: str,
        stage: str,
    ) -> None:
        def change(folder: Path) -> None:
            def flip(data: np.ndarray) -> None:
                data.view(np.float32)[3] += np.float32(0.5)

            change_bytes(folder, graph, weight, flip)

        folder = broken(exports("float32"), tmp_path / "broken", change)
        self._refused(exports, "float32", folder, stage, "at most", "e-0")

    def test_actions_that_are_not_finite(
        self, exports: Any, tmp_path: Path, unaudited: None
    ) -> None:
        def change(folder: Path) -> None:
            def flip(data: np.ndarray) -> None:
                data.view(np.float32)[:] = np.nan

            change_bytes(folder, "flow", "action_out.weight", flip)

        folder = broken(exports("float32"), tmp_path / "broken", change)
        self._refused(exports, "float32", folder, "finite")

    def test_a_letterbox(self, exports: Any, tmp_path: Path) -> None:
        import onnx

        def change(folder: Path) -> None:
            model = onnx.load(folder / "letterbox.onnx")
            (resize,) = (node for node in model.graph.node if node.op_type == "Resize")
            (mode,) = (a for a in resize.attribute if a.name == "coordinate_transformation_mode")
            mode.s = b"asymmetric"
            onnx.save(model, folder / "letterbox.onnx")

        folder = broken(exports("float32"), tmp_path / "broken", change)
        self._refused(exports, "float32", folder, bounds.PIXELS)

    def test_policy_alone(self, exports: Any, tmp_path: Path) -> None:
        """The other graphs are sound: only its own constants are changed."""
        import onnx

        def change(folder: Path) -> None:
            model = onnx.load(folder / "policy.onnx", load_external_data=False)
            held = {tensor.name: tensor for tensor in model.graph.initializer}
            rows = onnx.numpy_helper.to_array(held["schedule"]).copy()
            rows[:, 1] *= 0.9
            held["schedule"].CopyFrom(onnx.numpy_helper.from_array(rows, "schedule"))
            onnx.save(model, folder / "policy.onnx")

        folder = broken(exports("float32"), tmp_path / "broken", change)
        self._refused(exports, "float32", folder, "`policy` against three graphs")


class TestNothingStays:
    def _export(self, exports: Any, dest: Path, monkeypatch: Any, check: Any) -> None:
        """Through the exporter, but for the tracing: a prepared folder stands for what it makes."""
        source = open_source(exports.source("codes"))
        prepared = exports("codes")

        def write(_: Any, folder: Path, *__: Any) -> Any:
            for path in prepared.iterdir():
                if path.name != "export.json":
                    shutil.copyfile(path, folder / path.name)
            return read_export(prepared).manifest

        monkeypatch.setattr(exporter, "_write", write)
        exporter.export_onnx(source, dest, Plan.exact(4), verify=check)

    def test_of_an_export_that_fails(
        self, exports: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def breaks(folder: Path) -> Any:
            path = folder / "flow.weights"
            data = bytearray(path.read_bytes())
            for place in range(0, len(data), 97):
                data[place] ^= 0x10
            path.write_bytes(data)
            return verify_folder(folder, open_source(exports.source("codes")), SETTINGS)

        with pytest.raises(VerificationError):
            self._export(exports, tmp_path / "out", monkeypatch, breaks)
        assert list(tmp_path.iterdir()) == []

    def test_what_passes_holds_its_report(
        self, exports: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = open_source(exports.source("codes"))

        def check(folder: Path) -> Any:
            return verify_folder(folder, source, SETTINGS)

        self._export(exports, tmp_path / "out", monkeypatch, check)
        folder = read_export(tmp_path / "out")
        folder.verify_files()
        assert {"VERIFICATION.json", "CARD.md"} <= folder.manifest.files.keys()
        assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing beside it"


class TestReference:
    def test_codes_become_what_they_stand_for(self, exports: Any, tmp_path: Path) -> None:
        from smolvla_edge.codes import INPUT_SCALE, SCALE, read_codes
        from smolvla_edge.safetensors_file import read_tensor

        source = open_source(exports.source("codes"))
        with float_tensors(source, tmp_path) as tensors:
            assert not any(name.endswith((SCALE, INPUT_SCALE)) for name in tensors)
            for name in source.bundle.codes:
                entry = tensors[name]
                want = read_codes(source.tensors, name, entry.shape).weight()
                if name + INPUT_SCALE in source.tensors:
                    want = want * read_tensor(source.tensors[name + INPUT_SCALE])
                assert entry.dtype == "F32"
                np.testing.assert_array_equal(read_tensor(entry), want)
        assert list(tmp_path.iterdir()) == []

    def test_floats_stay_where_they_are(self, exports: Any, tmp_path: Path) -> None:
        source = open_source(exports.source("float32"))
        with float_tensors(source, tmp_path) as tensors:
            assert tensors is source.tensors


class TestMeasure:
    def test_scales_are_of_a_tensor_over_all_observations(self) -> None:
        got, want = Found(), Found()
        for size in (1.0, 100.0):
            want.keep_actions(np.full((2, 1), size, np.float32), np.full((2, 1), size, np.float32))
            made = np.full((2, 1), size + 1, np.float32)
            got.keep_actions(made, made)
        (normalized, robot) = apart(got, want)
        assert normalized.relative == pytest.approx(0.01) and robot.relative == pytest.approx(0.01)
        assert normalized.decibels == pytest.approx(10 * np.log10((1 + 1e4) / 2), rel=1e-6)
        assert robot.decibels is None

    def test_joints_are_held_by_themselves(self) -> None:
        got, want = Found(), Found()
        values = np.array([[1000.0, 0.001]], np.float32)
        want.keep_actions(values, values)
        moved = values + np.array([[0, 0.001]], np.float32)
        got.keep_actions(values, moved)
        robot = apart(got, want)[-1]
        assert robot.relative == pytest.approx(1) and robot.worst == "action 1"

    def test_not_a_number_is_never_within_a_bound(self) -> None:
        got, want = Found(), Found()
        for value in (np.nan, 1.0):
            made = np.full((1, 1), value, np.float32)
            got.keep_actions(made, made)
            want.keep_actions(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))
        for row in apart(got, want):
            with pytest.raises(VerificationError, match="finite"):
                row.check("this", bound=1e9)


def test_observations_mask_a_camera_that_may_be_missing(exports: Any) -> None:
    """This policy has an empty camera of its own already; one that has none takes turns."""
    source = open_source(exports.source("float32"))
    seen = list(Observed(source, "synthetic", 4, 0, (64, 64), 8))
    for one in seen:
        assert sum(frame is None for frame in one.frames) == 1
        assert one.names[:2] == list(CAMERAS)
    again = list(Observed(source, "synthetic", 4, 0, (64, 64), 8))
    for one, other in zip(seen, again, strict=True):
        np.testing.assert_array_equal(one.frames[0], other.frames[0])
        np.testing.assert_array_equal(one.noise, other.noise)
    assert not np.array_equal(seen[0].noise, seen[1].noise)

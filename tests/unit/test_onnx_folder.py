"""Reading an export folder: what is not as it was written, or reaches out of it, is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from needs import needs
from policy_helpers import tiny_checkpoint

from smolvla_edge.errors import ExportError
from smolvla_edge.onnx_folder import describe_files, is_export, read_export, write_manifest
from smolvla_edge.source import Source, open_source

with needs("onnx"):
    import onnx
    import onnx_helpers as made

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_source(tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny"))


@pytest.fixture(scope="module")
def good(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write_folder(tmp_path_factory.mktemp("bundle") / "onnx", source)


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(good, tmp_path / "onnx"))


@pytest.fixture
def refused(folder: Path) -> Callable[[str], None]:
    def check(words: str) -> None:
        with pytest.raises(ExportError, match=words):
            read_export(folder)

    return check


def spoil(folder: Path, name: str, change: Callable[[onnx.ModelProto], Any]) -> None:
    """A graph after `change`, put right in the manifest."""
    path = folder / f"{name}.onnx"
    model = onnx.ModelProto.FromString(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())
    made.edit_manifest(folder, lambda data: None)


def external(model: onnx.ModelProto) -> onnx.TensorProto:
    """The weights of a graph, in its loop where it has one."""
    graphs = [model.graph, *(a.g for n in model.graph.node for a in n.attribute if a.HasField("g"))]
    return next(t for g in reversed(graphs) for t in g.initializer if t.external_data)


def say(key: str, value: str) -> Callable[[onnx.TensorProto], None]:
    def change(tensor: onnx.TensorProto) -> None:
        (entry,) = (entry for entry in tensor.external_data if entry.key == key)
        entry.value = value

    return change


class TestReading:
    def test_good(self, good: Path, source: Source) -> None:
        folder = read_export(good)
        folder.verify_files()
        assert is_export(good) and not is_export(good.parent)
        assert folder.manifest.model == source.model
        assert folder.manifest.contract == source.contract
        assert folder.tokenizer_file == good / "tokenizer.json"
        assert folder.graph_file("flow") == good / "flow.onnx"

    def test_what_is_written_is_read(self, good: Path, tmp_path: Path) -> None:
        manifest = read_export(good).manifest
        assert manifest.files == describe_files(good)
        write_manifest(tmp_path, manifest)
        assert (tmp_path / "export.json").read_text() == (good / "export.json").read_text()

    def test_nothing_unreadable_is_written(self, good: Path, tmp_path: Path) -> None:
        from dataclasses import replace

        manifest = replace(read_export(good).manifest, precision="int3")
        with pytest.raises(ExportError, match="precision"):
            write_manifest(tmp_path, manifest)
        assert list(tmp_path.iterdir()) == []

    def test_a_persons_own_files_are_left_alone(self, folder: Path) -> None:
        (folder / "notes.txt").write_text("mine")
        read_export(folder).verify_files()

    def test_links_inside(self, folder: Path) -> None:
        (folder / "vision.weights").rename(folder / "moved")
        (folder / "vision.weights").symlink_to("moved")
        read_export(folder).verify_files()


class TestFiles:
    @pytest.mark.parametrize("name", ["export.json", "flow.onnx", "flow.weights", "tokenizer.json"])
    def test_missing(self, folder: Path, refused: Callable[[str], None], name: str) -> None:
        (folder / name).unlink()
        refused(f"{name} is missing")

    @pytest.mark.parametrize("name", ["vision.onnx", "prefix.weights", "tokenizer.json"])
    def test_cut_short(self, folder: Path, refused: Callable[[str], None], name: str) -> None:
        os.truncate(folder / name, (folder / name).stat().st_size - 1)
        refused(rf"{name}: expected \d+ bytes, got \d+: .*cut short")

    def test_export_json_cut_short(self, folder: Path, refused: Callable[[str], None]) -> None:
        os.truncate(folder / "export.json", 300)
        refused("expected a JSON object")

    def test_a_link_out(self, folder: Path, refused: Callable[[str], None], tmp_path: Path) -> None:
        (folder / "vision.weights").rename(tmp_path / "outside")
        (folder / "vision.weights").symlink_to(tmp_path / "outside")
        refused("outside the export folder")

    def test_no_regular_file(self, folder: Path, refused: Callable[[str], None]) -> None:
        (folder / "vision.weights").unlink()
        os.mkfifo(folder / "vision.weights")
        refused("expected a regular file")

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="expected an export folder"):
            read_export(tmp_path / "none")

    @pytest.mark.parametrize("name", ["flow.weights", "flow.onnx", "tokenizer.json"])
    def test_other_bytes(self, folder: Path, name: str) -> None:
        """Of the weights it is `verify_files` that sees it."""
        content = bytearray((folder / name).read_bytes())
        content[-2] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(ExportError, match=r"(flow|tokenizer)\."):
            read_export(folder).verify_files()


def at(*path: Any) -> Callable[[Any], Change]:
    """at("a", "b")(7): a change that sets data["a"]["b"]."""

    def with_value(value: Any) -> Change:
        def change(data: dict[str, Any]) -> None:
            inner: Any = data
            for step in path[:-1]:
                inner = inner[step]
            inner[path[-1]] = value

        return change

    return with_value


class TestManifest:
    @pytest.mark.parametrize(
        "change, words",
        [
            (at("format")("smolvla-edge bundle"), "not an export folder"),
            (at("version")(2), "export the bundle again"),
            (at("version")(True), "version"),
            (at("extra")(1), "expected an object of"),
            (lambda data: data.pop("form"), "expected an object of"),
            (at("precision")("int3"), "precision"),
            (at("form")(["qdq"]), "form"),
            (at("target")("gpu"), "target"),
            (at("opset")("23"), "opset"),
            (at("opset")(22), "says opset 22 and IR 10, the file opset 23"),
            (at("ir")(9), "says opset 23 and IR 9, the file opset 23 and IR 10"),
            (at("custom_ops")(1), "custom_ops"),
            (at("plan", "steps")(0), "steps"),
            (at("plan", "what")(0), "unknown what"),
            (at("model", "heads")(-1), "heads"),
            (at("model", "chunk_size")(9), "model says chunk_size 9, contract says 8"),
            (at("contract", "cameras")([]), "cameras"),
            (at("graphs", "vision")(None), "graphs: vision"),
            (lambda data: data["graphs"].pop("flow"), "graphs: expected"),
            (at("graphs", "other")({}), "graphs: expected"),
            (at("graphs", "vision", "file")("flow.onnx"), "in one file"),
            (at("graphs", "vision", "file")("../vision.onnx"), "expected one of its files"),
            (at("graphs", "vision", "nodes")(0), "nodes"),
            (at("graphs", "vision", "inputs")([]), "inputs"),
            (at("graphs", "vision", "inputs", 0, "name")("frames"), "expected pixels"),
            (at("graphs", "vision", "inputs", 0, "dtype")("float16"), "dtype"),
            (at("graphs", "vision", "inputs", 0, "shape")([1, 3]), r"expected float32 \['any', 3"),
            (at("graphs", "vision", "inputs", 0, "shape")([1, -3, 1, 1]), "expected sizes"),
            (at("graphs", "flow", "inputs", 0, "shape")(["h", 33]), "noise: expected"),
            (at("graphs", "flow", "outputs", 0, "name")("keys"), "expected actions"),
            (at("files", "../x")({"bytes": 1, "sha256": "0" * 64}), "expected a name of a file"),
            (at("files", "/etc/passwd")({"bytes": 1, "sha256": "0" * 64}), "expected a name"),
            (at("files", "a\\b")({"bytes": 1, "sha256": "0" * 64}), "expected a name"),
            (at("files", "")({"bytes": 1, "sha256": "0" * 64}), "expected a name"),
            (at("files", "..")({"bytes": 1, "sha256": "0" * 64}), "expected a name"),
            (at("files", "export.json")({"bytes": 1, "sha256": "0" * 64}), "expected a name"),
            (at("files", "none")({"bytes": 1, "sha256": "0" * 64}), "none is missing"),
            (at("files", "flow.weights", "bytes")(-1), "bytes"),
            (at("files", "flow.weights", "sha256")("0" * 63), "sha256"),
            (at("provenance", "source")(None), "source"),
            (at("provenance", "bundle")(7), "bundle"),
            (at("provenance", "precision")({"text": {"F32": "all"}}), "expected counts"),
        ],
    )
    def test_refused(
        self, folder: Path, refused: Callable[[str], None], change: Change, words: str
    ) -> None:
        made.edit_manifest(folder, change)
        refused(words)


class TestExternalData:
    """Whatever ONNX Runtime would open is one of the folder's files, whole."""

    @pytest.mark.parametrize("name", ["vision", "prefix", "flow"])
    @pytest.mark.parametrize(
        "location",
        ["../x", "/etc/passwd", "sub/vision.weights", "./vision.weights", "export.json", "",
         "vision.weights\x00", "*/_ORT_MEM_ADDR_/*", "VISION.WEIGHTS"],
    )  # fmt: skip
    def test_locations(
        self, folder: Path, refused: Callable[[str], None], name: str, location: str
    ) -> None:
        """Of the flow it is a tensor in its loop."""
        spoil(folder, name, lambda model: say("location", location)(external(model)))
        refused("expected one of the files of export.json")

    @pytest.mark.parametrize(
        "key, value, words",
        [
            ("length", "1000000", "ends at byte"),
            ("offset", "9" * 19, "ends at byte"),
            ("offset", "-4", "offset and length"),
            ("offset", "4e0", "offset and length"),
            ("length", "9" * 40, "offset and length"),
            ("length", "٤", "offset and length"),
        ],
    )
    def test_beyond_the_file(
        self, folder: Path, refused: Callable[[str], None], key: str, value: str, words: str
    ) -> None:
        spoil(folder, "flow", lambda model: say(key, value)(external(model)))
        refused(words)

    def test_a_loop_in_a_loop(self, folder: Path, refused: Callable[[str], None]) -> None:
        def nest(model: onnx.ModelProto) -> None:
            loop = next(node for node in model.graph.node if node.op_type == "Loop")
            inner = onnx.NodeProto()
            inner.CopyFrom(loop)
            say("location", "../x")(inner.attribute[0].g.initializer[1])
            loop.attribute[0].g.node.append(inner)

        spoil(folder, "flow", nest)
        refused(r"'factor' lies in '\.\./x'")

    def test_everywhere_a_tensor_can_be(self, folder: Path, refused: Callable[[str], None]) -> None:
        """Attributes, lists of them, sparse tensors, functions and their defaults."""
        bad = made.outside("bad", np.zeros(1, np.float32), "../x")

        def attribute(model: onnx.ModelProto) -> Any:
            return model.graph.node[0].attribute.add(name="a")

        def function(model: onnx.ModelProto) -> Any:
            return model.functions.add(name="f", domain="smolvla_edge")

        places: list[Callable[[onnx.ModelProto], Any]] = [
            lambda m: attribute(m).t.CopyFrom(bad),
            lambda m: attribute(m).tensors.append(bad),
            lambda m: attribute(m).sparse_tensor.values.CopyFrom(bad),
            lambda m: attribute(m).sparse_tensors.add().indices.CopyFrom(bad),
            lambda m: attribute(m).graphs.add().initializer.append(bad),
            lambda m: m.graph.sparse_initializer.add().values.CopyFrom(bad),
            lambda m: function(m).node.add(op_type="Constant").attribute.add().t.CopyFrom(bad),
            lambda m: function(m).attribute_proto.add().t.CopyFrom(bad),
        ]
        original = (folder / "vision.onnx").read_bytes()
        for place in places:
            (folder / "vision.onnx").write_bytes(original)
            spoil(folder, "vision", place)
            refused(r"'bad' lies in '\.\./x'")

    def test_said_twice(self, folder: Path, refused: Callable[[str], None]) -> None:
        """Which of two counts, readers need not agree on."""
        spoil(
            folder,
            "vision",
            lambda m: external(m).external_data.add(key="location", value="vision.weights"),
        )
        refused("says its 'location' twice")

    def test_here_and_elsewhere(self, folder: Path, refused: Callable[[str], None]) -> None:
        spoil(folder, "vision", lambda m: external(m).ClearField("data_location"))
        refused("both")

    def test_another_key(self, folder: Path, refused: Callable[[str], None]) -> None:
        spoil(folder, "vision", lambda m: external(m).external_data.add(key="basepath", value="/"))
        refused("basepath")


class TestOperators:
    @pytest.mark.parametrize("domain", ["ai.onnx.contrib", "com.example", "ai.onnx.ml"])
    def test_domains(self, folder: Path, refused: Callable[[str], None], domain: str) -> None:
        original = (folder / "vision.onnx").read_bytes()
        spoil(folder, "vision", lambda m: setattr(m.graph.node[0], "domain", domain))
        refused(domain)
        (folder / "vision.onnx").write_bytes(original)
        spoil(folder, "vision", lambda m: m.functions.add(name="f", domain=domain))
        refused(domain)

    def test_one_that_reads_files(self, folder: Path, refused: Callable[[str], None]) -> None:
        spoil(
            folder,
            "vision",
            lambda m: m.graph.node.add(op_type="EPContext", domain="com.microsoft"),
        )
        refused("EPContext, which may reach other files")

    def test_options_in_a_model(self, folder: Path, refused: Callable[[str], None]) -> None:
        spoil(folder, "vision", lambda m: m.metadata_props.add(key="ort_config", value="{}"))
        refused("the property ort_config")

    def test_training(self, folder: Path, refused: Callable[[str], None]) -> None:
        spoil(folder, "vision", lambda m: m.training_info.add())
        refused("training graph")


def test_json_is_what_the_design_says(good: Path) -> None:
    data = json.loads((good / "export.json").read_text())
    assert data["format"] == "smolvla-edge onnx export" and data["version"] == 1
    assert data["graphs"]["flow"]["inputs"][4] == {
        "name": "schedule", "dtype": "float32", "shape": ["steps", 5],
    }  # fmt: skip

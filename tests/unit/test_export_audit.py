"""The audit: a weight that is not what the source has, or wider than it says, is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_helpers import broken, change_bytes
from needs import needs

from smolvla_edge.errors import VerificationError
from smolvla_edge.onnx_folder import read_export
from smolvla_edge.source import open_source

with needs("torch", "onnx", "onnxscript", "onnxruntime"):
    import onnx

    from smolvla_edge.export import audit_run as audit_run_module
    from smolvla_edge.export.audit import audit_graphs, audit_weights, each_graph
    from smolvla_edge.export.audit_run import audit_run, coded_products

CODED = "expert.layers.1.mlp.gate.weight"


def audit(exports: Any, folder: Path) -> dict[str, Any]:
    source = open_source(exports.source("codes"))
    return audit_weights(read_export(folder), source, source.bundle.codes)


def refused(exports: Any, folder: Path, *words: str) -> None:
    with pytest.raises(VerificationError) as caught:
        audit(exports, folder)
    for word in words:
        assert word in str(caught.value)


def edited(
    exports: Any, target: Path, graph: str, change: Callable[[onnx.ModelProto], None]
) -> Path:
    """A copy of the export whose graph was changed; its weights lie where they lay."""

    def edit(folder: Path) -> None:
        path = folder / f"{graph}.onnx"
        model = onnx.load(path, load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())

    return broken(exports("codes"), target, edit)


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(
        tensor
        for graph in each_graph(model.graph)
        for tensor in graph.initializer
        if tensor.name == name
    )


class TestWeights:
    def test_a_sound_export(self, exports: Any) -> None:
        facts = audit(exports, exports("codes"))
        assert facts["codes_compared"] == len(open_source(exports.source("codes")).bundle.codes)
        assert facts["tensors"][CODED]["dtype"] == "INT4"
        assert facts["tensors"]["text.embed.weight"]["dtype"] == "INT8"

    @pytest.mark.parametrize("name", [CODED, "vision.layers.0.attn.q.weight"])
    def test_one_code_of_another_value(self, exports: Any, tmp_path: Path, name: str) -> None:
        def flip(data: np.ndarray) -> None:
            data[len(data) // 2] ^= 0x10

        graph = "vision" if name.startswith("vision") else "flow"
        folder = broken(
            exports("codes"), tmp_path / "x", lambda path: change_bytes(path, graph, name, flip)
        )
        refused(exports, folder, name, "the codes of the source", "1 others of")

    def test_one_scale_of_another_value(self, exports: Any, tmp_path: Path) -> None:
        def flip(data: np.ndarray) -> None:
            data[0] ^= 1

        folder = broken(
            exports("codes"),
            tmp_path / "x",
            lambda path: change_bytes(path, "flow", CODED + "_scale", flip),
        )
        refused(exports, folder, CODED, "scales")

    def test_a_row_of_the_table(self, exports: Any, tmp_path: Path) -> None:
        def flip(data: np.ndarray) -> None:
            data[100] ^= 1

        folder = broken(
            exports("codes"),
            tmp_path / "x",
            lambda path: change_bytes(path, "prefix", "text.embed.weight", flip),
        )
        refused(exports, folder, "text.embed.weight", "1 others of")

    @pytest.mark.parametrize("name", ["action_out.weight", "flow.time_in.weight"])
    def test_the_last_bit_of_a_float(self, exports: Any, tmp_path: Path, name: str) -> None:
        """Too small for any measurement."""

        def flip(data: np.ndarray) -> None:
            data[8] ^= 1

        folder = broken(
            exports("codes"), tmp_path / "x", lambda path: change_bytes(path, "flow", name, flip)
        )
        refused(exports, folder, name, "1 others of")

    def test_a_float_twin(self, exports: Any, tmp_path: Path) -> None:
        """Under the weight's own name, in place of its codes: four times the bytes it says."""

        def widen(model: onnx.ModelProto) -> None:
            tensor = initializer(model, CODED)
            shape = tuple(tensor.dims)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(shape, np.float32), CODED))

        refused(exports, edited(exports, tmp_path / "x", "flow", widen), CODED, "codes of 4 bits")

    @pytest.mark.parametrize("kind", ["initializer", "constant"])
    def test_floats_under_a_new_name(self, exports: Any, tmp_path: Path, kind: str) -> None:
        def add(model: onnx.ModelProto) -> None:
            wide = onnx.numpy_helper.from_array(np.ones((96, 96), np.float32), "wide")
            if kind == "initializer":
                model.graph.initializer.append(wide)
            else:
                model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=wide))

        folder = edited(exports, tmp_path / "x", "prefix", add)
        refused(exports, folder, "prefix", "nothing accounts for")

    def test_fewer_bytes_than_its_shape_takes(self, exports: Any, tmp_path: Path) -> None:
        def cut(model: onnx.ModelProto) -> None:
            tensor = initializer(model, CODED)
            next(entry for entry in tensor.external_data if entry.key == "length").value = "64"

        refused(exports, edited(exports, tmp_path / "x", "flow", cut), CODED, "bytes for INT4")

    def test_policy_reads_the_same_bytes(self, exports: Any, tmp_path: Path) -> None:
        def move(model: onnx.ModelProto) -> None:
            tensor = initializer(model, CODED)
            next(entry for entry in tensor.external_data if entry.key == "offset").value = "0"

        refused(exports, edited(exports, tmp_path / "x", "policy", move), CODED, "another tensor")


class TestGraphs:
    def test_what_onnx_refuses(self, exports: Any, tmp_path: Path) -> None:
        def change(model: onnx.ModelProto) -> None:
            next(node for node in model.graph.node if node.op_type == "MatMul").input.pop()

        folder = read_export(edited(exports, tmp_path / "x", "vision", change))
        with pytest.raises(VerificationError, match=r"vision\.onnx"):
            audit_graphs(folder)

    def test_a_wrong_shape(self, exports: Any, tmp_path: Path) -> None:
        def change(model: onnx.ModelProto) -> None:
            model.graph.output[0].type.tensor_type.shape.dim[2].dim_value += 1

        folder = edited(exports, tmp_path / "x", "vision", change)
        with pytest.raises(VerificationError, match=r"vision\.onnx"):
            audit_graphs(read_export(folder))


class TestRun:
    def test_products_that_are_not_fused(
        self, exports: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Codes behind an Identity: right numbers, and widened in every call."""

        def hide(model: onnx.ModelProto) -> None:
            for graph in each_graph(model.graph):
                for place, node in enumerate(graph.node):
                    if node.op_type == "DequantizeLinear":
                        between = onnx.helper.make_node("Identity", [node.output[0]], ["seen"])
                        reader = next(n for n in graph.node if node.output[0] in n.input)
                        reader.input[list(reader.input).index(node.output[0])] = "seen"
                        graph.node.insert(place + 1, between)
                        other = onnx.helper.make_node("Abs", ["seen"], ["unread"])
                        graph.node.insert(place + 2, other)
                        graph.output.append(onnx.helper.make_empty_tensor_value_info("unread"))
                        return

        folder = edited(exports, tmp_path / "x", "prefix", hide)
        model = onnx.load(folder / "prefix.onnx", load_external_data=False)
        assert coded_products(model) == {8: 23}, "all of them are still there"
        monkeypatch.setattr(audit_run_module, "FUSES_EIGHT_BITS", (1, 0))
        with pytest.raises(VerificationError, match="prefix: expected 23 products"):
            audit_run(read_export(folder), custom=False)

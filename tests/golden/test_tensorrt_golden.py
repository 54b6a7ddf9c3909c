"""Exports for TensorRT, run by ONNX Runtime on the CPU: LeRobot's recorded actions in float32, a
floor of signal over noise in float16, the bundle's own codes in blocks of int4."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_support as support
import native_runner
import numpy as np
import pytest
from needs import needs

from smolvla_edge.codes import read_codes
from smolvla_edge.compress.quantize import quantize
from smolvla_edge.compress.recipe import RECIPES
from smolvla_edge.errors import VerificationError
from smolvla_edge.flow_rows import pull_target, pull_weights
from smolvla_edge.names import expected_tensors
from smolvla_edge.onnx_folder import ExportFolder, read_export
from smolvla_edge.source import Source, open_source

with needs("torch", "onnx", "onnxscript", "onnxruntime"):
    import onnx
    import onnxruntime

    from smolvla_edge.export.exporter import Options, export_onnx
    from smolvla_edge.export.tensorrt_check import FLOAT16_FLOOR_DB, check_tensorrt
    from smolvla_edge.export.tensorrt_operators import check_operators

BOUND = 1e-4  # of the largest magnitude, as of every float32 export
SOURCES = {"float32": "rtc_linear", "float16": "special_tokens", "int4": "base"}
# All of one policy: other prompts, cameras and guidance are other inputs of the same graphs.
CASES = (
    "base", "one_camera", "max_length", "masked_camera",
    "rtc_linear", "rtc_exp", "rtc_ones", "rtc_zeros",
)  # fmt: skip


def opened(folder: Path) -> Source:
    tokenizer = support.TINY / "pipeline" / "tokenizer" / "tokenizer.json"
    return open_source(folder, tokenizer=tokenizer, allow_unnormalized=True)


@pytest.fixture(scope="module")
def export(
    folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Source, ExportFolder]]:
    """What was exported for TensorRT, verified, made when it is first asked for."""
    made: dict[str, tuple[Source, ExportFolder]] = {}

    def get(kind: str) -> tuple[Source, ExportFolder]:
        if kind not in made:
            out = tmp_path_factory.mktemp(kind)
            source = opened(folder(SOURCES[kind]))
            if kind == "int4":
                quantize(source, out / "bundle", RECIPES["small"])
                source = opened(out / "bundle")
            precision = "float32" if kind == "float32" else "as-stored"
            export_onnx(
                source,
                out / "onnx",
                options=Options(precision=precision, target="tensorrt"),
                verify=lambda path: check_tensorrt(path, source, observations=1, threads=1),
            )
            made[kind] = source, read_export(out / "onnx")
        return made[kind]

    return get


def run(folder: ExportFolder, case: str) -> dict[str, np.ndarray]:
    """Image tokens and actions of a golden case, by the three graphs."""
    seen = support.observation(case)
    size = folder.manifest.model.resize
    (images,) = call(folder, "vision", pixels=native_runner.pixels_of(seen, size))
    keys, values, valid = call(
        folder,
        "prefix",
        image_tokens=images,
        camera_mask=seen.camera_mask[0],
        tokens=seen.tokens[0],
        token_mask=seen.token_mask[0],
        state=seen.state[0],
    )
    rows, width = seen.noise[0].shape
    pull = np.zeros((rows, width), np.float32), np.zeros(rows, np.float32)
    if seen.guidance is not None:
        pull = pull_target(seen.guidance, rows, width), pull_weights(seen.guidance, rows)
    (actions,) = call(
        folder,
        "flow",
        noise=seen.noise[0],
        keys=keys,
        values=values,
        valid=valid,
        pull_target=pull[0],
        pull_weights=pull[1],
    )
    return {"images": images, "actions": actions}


def call(folder: ExportFolder, graph: str, **inputs: np.ndarray) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = str(folder.graph_file(graph))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert [port.name for port in session.get_inputs()] == list(inputs)
    return session.run(None, inputs)


@pytest.mark.parametrize("case", CASES)
def test_float32_is_lerobots(case: str, export: Any) -> None:
    got, want = run(export("float32")[1], case), support.golden(case)
    support.compare("actions", got["actions"], want["out.actions_padded"][0], BOUND)
    for i, masked in enumerate(~support.observation(case).camera_mask[0]):
        if not masked:
            support.compare("image", got["images"][i], want[f"out.connector.{i}"][0], BOUND)


def test_float16_keeps_its_floor(export: Any) -> None:
    _, folder = export("float16")
    assert folder.manifest.precision == "float16"
    got = run(folder, "special_tokens")["actions"]
    want = support.golden("special_tokens")["out.actions_padded"][0]
    error = got.astype(np.float64) - want
    assert 10 * np.log10((want**2).sum() / (error**2).sum()) > FLOAT16_FLOOR_DB
    assert np.abs(error).max() > 1e-6, "nothing was rounded: these are no float16 graphs"


@pytest.mark.parametrize(("kind", "opset", "ir"), [("float32", 20, 9), ("int4", 21, 10)])
def test_graphs_are_of_what_tensorrt_documents(kind: str, opset: int, ir: int, export: Any) -> None:
    """check_tensorrt looked already, and would have kept nothing; here in other words."""
    _, folder = export(kind)
    manifest = folder.manifest
    assert (manifest.target, manifest.custom_ops, manifest.opset, manifest.ir) == (
        "tensorrt", False, opset, ir,
    )  # fmt: skip
    assert sorted(manifest.graphs) == ["flow", "prefix", "vision"]
    for name in manifest.graphs:
        path = folder.graph_file(name)
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        check_operators(model, name)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        assert not {tensor.name for tensor in model.graph.initializer} & {
            value.name for value in model.graph.input
        }


def test_int4_blocks_are_the_bundles_codes(export: Any) -> None:
    """Every 4-bit weight, decoded as ONNX says it; blocks are whole, scales positive."""
    source, folder = export("int4")
    shapes = expected_tensors(source.model)
    four = {name: form for name, form in source.bundle.codes.items() if form.bits == 4}
    assert four and folder.manifest.provenance["dequantised"] == {
        "w8a8": len(source.bundle.codes) - len(four)
    }
    found = {}
    for graph in folder.manifest.graphs:
        model = onnx.load(folder.graph_file(graph))
        inside = [model.graph]
        while inside:
            here = inside.pop()
            held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in here.initializer}
            for node in here.node:
                inside += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
                if node.op_type == "DequantizeLinear":
                    found[node.input[0]] = held[node.input[0]], held[node.input[1]]
    assert found.keys() == four.keys()
    for name, (codes, scales) in found.items():
        columns = shapes[name].shape[1]
        want = read_codes(source.tensors, name, shapes[name].shape)
        size = four[name].group_size
        assert len(codes) == -(-columns // size) * size and scales.dtype == np.float16
        assert (scales > 0).all()
        wide = codes.astype(np.float32) * np.repeat(scales.astype(np.float32), size, 0)
        assert np.array_equal(wide[:columns].T, want.weight()), name
        assert not codes[columns:].any()


@pytest.mark.parametrize("grown", [("vision.patch.bias", "vision.position.weight")])
def test_activations_that_outgrow_float16_are_found(
    grown: tuple[str, ...], export: Any, tmp_path: Path
) -> None:
    """Both hold 6e4, which float16 has; their sum it has not."""
    source, folder = export("float16")
    copy = Path(shutil.copytree(folder.path, tmp_path / "copy"))
    model = onnx.load(copy / "vision.onnx", load_external_data=False)
    data = bytearray((copy / "vision.weights").read_bytes())
    for tensor in model.graph.initializer:
        if tensor.name in grown:
            where = {item.key: item.value for item in tensor.external_data}
            at, size = int(where["offset"]), int(where["length"])
            data[at : at + size] = np.full(size // 2, 6e4, np.float16).tobytes()
    (copy / "vision.weights").write_bytes(data)
    with pytest.raises(VerificationError, match=r"image_tokens: .* outgrows float16.*float32"):
        check_tensorrt(copy, source, observations=1, threads=1)


def test_another_weight_is_found(export: Any, tmp_path: Path) -> None:
    source, folder = export("float32")
    copy = Path(shutil.copytree(folder.path, tmp_path / "copy"))
    data = bytearray((copy / "flow.weights").read_bytes())
    data[:400] = bytes(400)
    (copy / "flow.weights").write_bytes(data)
    with pytest.raises(VerificationError, match=r"actions: expected at most 0\.0001"):
        check_tensorrt(copy, source, observations=1, threads=1)


def test_report_and_card(export: Any) -> None:
    _, folder = export("int4")
    report = json.loads((folder.path / "VERIFICATION.json").read_text())
    assert report["passed"] and report["dequantised"] == folder.manifest.provenance["dequantised"]
    assert {row["stage"] for row in report["stages"]} == {"image_tokens", "actions"}
    assert "TensorRT" in report["not_run"]
    text = (folder.path / "CARD.md").read_text()
    assert "Not run on a Jetson" in text and f"{report['dequantised']['w8a8']} of w8a8" in text
    for graph in folder.manifest.graphs:
        assert f"trtexec --onnx={graph}.onnx" in text

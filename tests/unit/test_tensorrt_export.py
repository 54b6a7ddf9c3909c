"""The pieces of exports for TensorRT that need no tracing: basic operators against torch's own, the
table of operators, weights that float16 cannot hold, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from needs import needs
from onnx_helpers import edit_manifest, write_folder

from smolvla_edge.errors import BackendError, ExportError, PlanError
from smolvla_edge.flow_rows import schedule_rows
from smolvla_edge.names import expected_tensors
from smolvla_edge.onnx_folder import read_export
from smolvla_edge.plan import Plan
from smolvla_edge.policy import load
from smolvla_edge.safetensors_file import SafetensorsFile, SafetensorsWriter
from smolvla_edge.source import Source, open_source

with needs("torch", "onnx", "onnxscript", "onnxruntime"):
    import onnx
    import torch
    from onnx import TensorProto, helper
    from torch.nn import functional

    from smolvla_edge.codes import CodeFormat, Codes
    from smolvla_edge.export import plain
    from smolvla_edge.export.exporter import Options, check_plan
    from smolvla_edge.export.forms import Form
    from smolvla_edge.export.layers import Arithmetic, Linear
    from smolvla_edge.export.plain_stored import PlainWeights
    from smolvla_edge.export.stored import WeightsFile
    from smolvla_edge.export.tensorrt import arithmetic, dequantised
    from smolvla_edge.export.tensorrt_operators import check_operators

RANDOM = torch.Generator().manual_seed(3)


def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=RANDOM) * scale


@pytest.fixture(scope="module")
def source(pristine: Path) -> Source:
    return open_source(pristine)


# --- basic operators


def test_norms_and_gelu_are_torchs() -> None:
    x, weight = normal(2, 5, 48, scale=3), normal(48)
    want = functional.rms_norm(x, (48,), weight, 1e-5)
    torch.testing.assert_close(plain.rms_norm(x, weight, 1e-5), want, rtol=2e-6, atol=1e-6)
    want = functional.gelu(x, approximate="tanh")
    torch.testing.assert_close(plain.gelu(x), want, rtol=2e-6, atol=1e-6)


def test_large_float16_stays_finite() -> None:
    """Squares and cubes of these outgrow float16; what is computed of them does not."""
    x = torch.tensor([[-30000.0, 30000.0, 1000.0, -1000.0]]).half()
    normed = plain.rms_norm(x, torch.ones(4).half(), 1e-5)
    want = functional.rms_norm(x.float(), (4,), torch.ones(4), 1e-5)
    torch.testing.assert_close(normed.float(), want, rtol=2e-3, atol=1e-3)
    assert plain.gelu(x).tolist() == [[0.0, 30000.0, 1000.0, 0.0]]


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (3, 1)])
def test_attention_is_torchs(heads: int, kv_heads: int) -> None:
    size, rows, columns = 8, 5, 7
    q = normal(2, rows, heads * size, scale=2)
    k, v = normal(2, columns, kv_heads * size), normal(2, columns, kv_heads * size)
    for mask in (None, torch.rand(rows, columns, generator=RANDOM) < 0.7):
        if mask is not None:
            mask[:, 0] = True

        def split(x: torch.Tensor, count: int) -> torch.Tensor:
            return x.unflatten(2, (count, size)).transpose(1, 2)

        want = functional.scaled_dot_product_attention(
            split(q, heads), split(k, kv_heads), split(v, kv_heads), mask, enable_gqa=True
        )
        got = plain.attend(q, k, v, heads, kv_heads, mask)
        torch.testing.assert_close(got, want.transpose(1, 2).flatten(2), rtol=1e-5, atol=2e-6)


def test_a_row_that_may_read_nothing_is_no_nan() -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    for dtype in (torch.float32, torch.float16):
        q, k, v = (normal(1, n, 8).to(dtype) for n in (2, 3, 3))
        assert plain.attend(q, k, v, 1, 1, mask).isfinite().all()


def test_rotation_is_the_references() -> None:
    from smolvla_edge.export.layers import Rotation
    from smolvla_edge.model.layers import rope

    heads, size = 3, 8
    x, positions = normal(1, 6, heads * size), torch.tensor([0, 1, 2, 2, 3, 4])
    turns = Rotation(size, 10000.0)(positions, torch.float32)
    want = rope(x.unflatten(2, (heads, size)), positions[None], 10000.0)
    torch.testing.assert_close(plain.rotate(x, turns, heads), want.flatten(2), rtol=1e-5, atol=1e-6)


def test_positions_count_valid_tokens() -> None:
    valid = torch.tensor([True, False, True, True, False, True])
    assert plain.number(valid).tolist() == (valid.long().cumsum(0) - 1).tolist()


# --- what is kept as codes


def test_only_blocks_that_tensorrt_takes_are_kept() -> None:
    codes = {f"g{size}": CodeFormat(4, size) for size in (32, 64, 128)} | {"int8": CodeFormat(8)}
    how = arithmetic(codes, "as-stored")
    assert sorted(how.codes) == ["g128", "g64"] and how.opset == 21
    assert (how.dtype, how.table) == (torch.float16, torch.float16) and not how.fused
    assert dequantised(codes, how) == {"w4a8 g32": 1, "w8a8": 1}
    plain_floats = arithmetic({"int8": CodeFormat(8)}, "as-stored")
    assert plain_floats.opset == 20 and not plain_floats.codes


@pytest.mark.parametrize(("inputs", "whole"), [(720, 768), (768, 768)])
def test_rows_of_codes_are_whole_blocks(inputs: int, whole: int) -> None:
    for opset, rows in ((21, whole), (23, inputs)):
        how = Arithmetic(torch.float16, {"x.weight": CodeFormat(4, 64)}, torch.float16, opset)
        assert Linear(how, "x", inputs, 8).weight.shape == (rows, 8)


def plain_weights(source: Source, dtype: torch.dtype, **changed: Any) -> PlainWeights:
    """Of the tiny policy; `changed`: other values of some tensors."""

    class Changed(PlainWeights):
        def array(self, name: str) -> Any:
            return changed[name] if name in changed else super().array(name)

    schedule = schedule_rows(Plan.exact(4))
    grid = (4, 4)
    return Changed(source.model, source.tensors, {}, dtype, "qdq", grid, schedule=schedule)


def test_a_weight_that_float16_cannot_hold_is_refused(source: Source, tmp_path: Path) -> None:
    name = "time_out.bias"
    large = np.full(source.tensors[name].shape, 65520, np.float32)
    weights = plain_weights(source, torch.float16, **{name: large})
    file = WeightsFile(tmp_path / "weights")
    with pytest.raises(ExportError, match=r"time_out\.bias: .*float16.*65520.*float32"):
        weights.write(file, name)
    plain_weights(source, torch.float16, **{name: large - 20}).write(file, name)
    plain_weights(source, torch.float32, **{name: large}).write(file, name)
    file.close()


def test_moments_are_what_the_reference_computes(source: Source, tmp_path: Path) -> None:
    """A row for each step: the time's half of the MLP's first matrix, and every bias before it."""
    from smolvla_edge.model import load_model
    from smolvla_edge.model.flow import time_embedding

    model = source.model
    flow = load_model(model, source.tensors)
    file = WeightsFile(tmp_path / "weights")
    plain_weights(source, torch.float32).write(file, "flow.moments")
    file.close()
    made = np.fromfile(tmp_path / "weights", np.float32).reshape(4, model.expert_width)
    times = torch.tensor([1.0, 0.75, 0.5, 0.25])
    embedded = time_embedding(times, model.expert_width, model.min_period, model.max_period)
    action = flow.action_in(torch.zeros(4, model.max_action_dim))
    want = flow.time_in(torch.cat((action, embedded.float()), 1)).detach().numpy()
    np.testing.assert_allclose(made, want, rtol=1e-5, atol=1e-5)


def test_a_block_of_zeros_gets_a_positive_scale(source: Source, tmp_path: Path) -> None:
    """The parser wants every scale over 0; codes of a scale of 0 stand for 0, whatever they are."""
    name = "expert.layers.0.attn.q.weight"
    rows, columns = expected_tensors(source.model)[name].shape
    form = CodeFormat(4, 64)
    codes = np.random.default_rng(0).integers(-7, 8, (rows, columns)).astype(np.int8)
    scales = np.full((rows, form.groups(columns)), 0.5, np.float32)
    scales[1, 0] = 0
    coded = Codes(form, codes, scales)
    layouts = form.layouts(name, (rows, columns))
    values = dict(zip([layout.name for layout in layouts], coded.stored(), strict=True))
    with SafetensorsWriter(tmp_path / "codes", layouts, {}) as writer:
        for layout in writer.order:
            writer.write(layout.name, values[layout.name])
    tensors = SafetensorsFile(tmp_path / "codes").entries
    file = WeightsFile(tmp_path / "weights")
    PlainWeights(
        source.model, tensors, {name: form}, torch.float16, "qdq", (4, 4),
        schedule=schedule_rows(Plan.exact(4)),
    ).write(file, name)  # fmt: skip
    file.close()
    data = (tmp_path / "weights").read_bytes()
    parts = {key: data[at.offset : at.offset + at.nbytes] for key, at in file.tensors.items()}
    made = np.frombuffer(parts[name + "_scale"], np.float16).reshape(-1, rows)
    nibbles = np.frombuffer(parts[name], np.uint8)
    wide = np.stack((nibbles & 15, nibbles >> 4), 1).reshape(-1, rows).astype(np.int8)
    wide = np.where(wide > 7, wide - 16, wide)
    assert (made > 0).all() and len(wide) == 64 * len(made)
    weight = wide * np.repeat(made.astype(np.float32), 64, 0)
    np.testing.assert_array_equal(weight[:columns].T, coded.weight())


# --- the table of operators

FLOAT = TensorProto.FLOAT
Change = Callable[[dict[str, Any]], None]


def a_model(change: Change = lambda parts: None) -> onnx.ModelProto:
    """A Loop around a product, and a mean, in opset 20."""
    value = helper.make_tensor_value_info
    parts: dict[str, Any] = {
        "type": FLOAT,
        "opset": 20,
        "domain": "",
        "nodes": [helper.make_node("ReduceMean", ["after", "axes"], ["y"])],
        "count": ["count", ""],
        "going": helper.make_node(
            "Constant", [], ["on"], value=helper.make_tensor("t", 9, [], [1])
        ),
        "held": [
            helper.make_tensor("axes", TensorProto.INT64, [1], [0]),
            helper.make_tensor("count", TensorProto.INT64, [], [3]),
        ],
        "inputs": [],
        "functions": [],
    }
    change(parts)
    kind = parts["type"]
    body = helper.make_graph(
        [helper.make_node("Mul", ["a", "a"], ["b"]), parts["going"]],
        "body",
        [value("i", TensorProto.INT64, []), value("go", 9, []), value("a", kind, [2, 4])],
        [value("on", 9, []), value("b", kind, [2, 4])],
    )
    loop = helper.make_node("Loop", [*parts["count"], "x"], ["after"], body=body)
    graph = helper.make_graph(
        [loop, *parts["nodes"]],
        "g",
        [value("x", kind, [2, 4]), *parts["inputs"]],
        [value("y", kind, None)],
        parts["held"],
    )
    imports = [helper.make_opsetid("", parts["opset"])]
    return helper.make_model(
        graph, opset_imports=imports, ir_version=9, functions=parts["functions"]
    )


def a_node(*words: Any, **attributes: Any) -> Change:
    return lambda parts: parts.update(nodes=[helper.make_node(*words, **attributes)])


def a_value(name: str, kind: int, shape: list[int], **more: Any) -> Change:
    info = helper.make_tensor_value_info(name, kind, shape)
    return lambda parts: parts.update(inputs=[info], **more)


def blocks(size: int, rows: int) -> Change:
    def change(parts: dict[str, Any]) -> None:
        parts["opset"] = 21
        codes = helper.make_tensor("codes", TensorProto.INT4, [rows, 4], [0] * (rows * 4))
        scales = helper.make_tensor(
            "scales", FLOAT, [-(-rows // size), 4], [1] * (-(-rows // size) * 4)
        )
        parts["held"] += [codes, scales]
        parts["nodes"].append(
            helper.make_node(
                "DequantizeLinear", ["codes", "scales"], ["w"], axis=0, block_size=size
            )
        )

    return change


def test_what_is_documented_passes() -> None:
    check_operators(a_model(), "here")
    check_operators(a_model(lambda parts: parts.update(type=TensorProto.FLOAT16)), "here")
    check_operators(a_model(blocks(64, 128)), "here")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.update(type=TensorProto.DOUBLE), "'x' of type DOUBLE"),
        (lambda p: p.update(type=TensorProto.BFLOAT16), "'x' of type BFLOAT16"),
        (lambda p: p.update(opset=22), "operator set ai.onnx 22"),
        (a_node("CumSum", ["after", "count"], ["y"]), "operator ai.onnx::CumSum"),
        (a_node("Gelu", ["after"], ["y"]), "operator ai.onnx::Gelu"),
        (
            a_value("k", TensorProto.INT64, [1], nodes=[
                helper.make_node("ReduceMean", ["after", "k"], ["y"])
            ]),
            "input 1 is no initializer",
        ),
        (a_value("count", TensorProto.INT64, []), r"inputs with defaults: \['count'\]"),
        (a_value("k", TensorProto.INT64, [], count=["k", ""]), "number of passes that may change"),
        (a_value("yes", TensorProto.BOOL, [], count=["count", "yes"]), "a condition"),
        (lambda p: p.update(going=helper.make_node("Identity", ["go"], ["on"])), "a condition"),
        (blocks(32, 128), r"codes \[128, 4\] .* in blocks of 32"),
        (blocks(64, 80), r"codes \[80, 4\] .* in blocks of 64"),
        (
            lambda p: p.update(functions=[helper.make_function(
                "mine", "F", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])],
                [helper.make_opsetid("", 20)],
            )]),
            r"functions \['F'\]",
        ),
    ],
)  # fmt: skip
def test_what_is_not_documented_is_refused(change: Change, said: str) -> None:
    with pytest.raises(ExportError, match=f"here: .*{said}"):
        check_operators(a_model(change), "here")


# --- refusals by name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "int8"}, "precision int8: expected one of .*as-stored.*8 bits.*float16"),
        ({"form": Form("matmulnbits")}, "form matmulnbits: expected qdq"),
        ({"target": "openvino"}, "target: expected one of onnxruntime, tensorrt, got 'openvino'"),
    ],
)
def test_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        Options(**{"target": "tensorrt", **options})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--precision", "int8"), "8-bit weights"),
        (("--form", "integer"), "form integer: expected qdq"),
        (("--data", "somewhere"), "--data somewhere: expected synthetic"),
        (("--plan", "steps=4,warm_start=0.5"), "warm_start=0.5"),
    ],
)
def test_the_command_refuses_before_any_work(
    words: tuple[str, ...], said: str, cli: Any, pristine: Path, tmp_path: Path
) -> None:
    result = cli("export", pristine, tmp_path / "onnx", "--target", "tensorrt", *words)
    assert result.code != 0 and said in " ".join(result.err.split())
    assert "tracing" not in result.err and not list(tmp_path.glob("*onnx*"))


def test_a_warm_start_is_refused(source: Source) -> None:
    plan = Plan(steps=4, warm_start=0.5)
    check_plan(plan, source)
    with pytest.raises(PlanError, match=r"tensorrt.*warm_start=0\.5"):
        check_plan(plan, source, "tensorrt")


def for_tensorrt(folder: Path) -> None:
    """Change a made-up folder into one for TensorRT, as far as its manifest goes."""

    def change(data: dict[str, Any]) -> None:
        data["target"] = "tensorrt"
        del data["graphs"]["policy"]
        flow = data["graphs"]["flow"]
        flow["inputs"] = [port for port in flow["inputs"] if port["name"] != "schedule"]

    edit_manifest(folder, change)


def test_such_a_folder_is_read_and_not_run(source: Source, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "onnx", source)
    for_tensorrt(folder)
    assert read_export(folder).manifest.target == "tensorrt"
    with pytest.raises(
        BackendError, match=r"exported for tensorrt: .*trtexec.*--target onnxruntime"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(target="onnxruntime"), "graphs: expected .*policy"),
        (lambda data: data["graphs"].pop("vision"), "graphs: expected vision, prefix, flow, got"),
        (
            lambda data: data["graphs"]["flow"]["inputs"].append(
                {"name": "schedule", "dtype": "float32", "shape": ["steps", 5]}
            ),
            "flow: inputs: expected noise",
        ),
    ],
)
def test_its_manifest_is_held_to_its_target(
    change: Callable[[dict[str, Any]], Any], said: str, source: Source, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "onnx", source)
    for_tensorrt(folder)
    edit_manifest(folder, change)
    with pytest.raises(ExportError, match=said):
        read_export(folder)


def test_the_default_target_is_what_it_was() -> None:
    assert Options().target == "onnxruntime"
    assert replace(Options(), precision="float16").precision == "float16"

"""A made-up export folder: graphs of a few nodes whose results can be said beforehand.

They have the inputs and outputs of real ones. With m = a camera's mean pixel, s = the state:

    image_tokens = m * vision.weights
    keys         = [one number a row: m's token mean, token id + 1, sum of s] * prefix.weights
    velocity     = FACTOR * x + RATE * time + PULL * (sum of the valid keys)

The flow's numbers lie in its file of weights, and are named inside its loop.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from smolvla_edge.config import ModelConfig
from smolvla_edge.onnx_folder import Graph, Manifest, Port, describe_files, write_manifest
from smolvla_edge.plan import Plan
from smolvla_edge.source import Source

OPSET, IR = 23, 10
FACTOR, RATE, PULL = np.float32(0.5), np.float32(-1.5), np.float32(1e-4)
_KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
Graphs = dict[str, onnx.ModelProto]
node = helper.make_node


def vision_weights(model: ModelConfig) -> np.ndarray:
    count = model.tokens_per_image(*(model.resize or (model.image_size,) * 2))
    return np.linspace(0.5, 1.5, count * model.text_width, dtype=np.float32).reshape(1, count, -1)


def prefix_weights(model: ModelConfig) -> np.ndarray:
    width = model.kv_heads * model.head_dim
    return np.linspace(0.1, 1, model.expert_layers * width, dtype=np.float32).reshape(-1, 1, width)


def outside(name: str, array: np.ndarray, location: str, offset: int = 0) -> onnx.TensorProto:
    """An initializer whose bytes are in another file."""
    tensor = TensorProto(name=name, data_type=_KINDS[str(array.dtype)], dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    said = {"location": location, "offset": str(offset), "length": str(array.nbytes)}
    for key, value in said.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def inside(name: str, values: Any, dtype: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def make_vision(model: ModelConfig) -> onnx.ModelProto:
    nodes = [
        node("ReduceMean", ["pixels", "axes"], ["mean"]),
        node("Reshape", ["mean", "column"], ["means"]),
        node("Mul", ["means", "w"], ["image_tokens"]),
    ]
    held = [
        inside("axes", [1, 2, 3], "int64"), inside("column", [-1, 1, 1], "int64"),
        outside("w", vision_weights(model), "vision.weights"),
    ]  # fmt: skip
    return _model("vision", nodes, held, model)


def make_prefix(model: ModelConfig) -> onnx.ModelProto:
    count = vision_weights(model).shape[1]
    nodes = [
        node("ReduceMean", ["image_tokens", "last"], ["of_images"], keepdims=0),
        node("Reshape", ["of_images", "flat"], ["images"]),
        node("Cast", ["tokens"], ["numbers"], to=TensorProto.FLOAT),
        node("Add", ["numbers", "one"], ["words"]),
        node("ReduceSum", ["state"], ["of_state"], keepdims=1),
        node("Concat", ["images", "words", "of_state"], ["row"], axis=0),
        node("Reshape", ["row", "column"], ["rows"]),
        node("Mul", ["rows", "w"], ["keys"]),
        node("Add", ["keys", "keys"], ["values"]),
        node("Reshape", ["camera_mask", "upright"], ["cameras"]),
        node("And", ["cameras", "each"], ["of_cameras"]),
        node("Reshape", ["of_cameras", "flat"], ["valid_images"]),
        node("Concat", ["valid_images", "token_mask", "yes"], ["valid"], axis=0),
    ]
    held = [
        inside("last", [2], "int64"), inside("flat", [-1], "int64"),
        inside("column", [1, -1, 1], "int64"), inside("upright", [-1, 1], "int64"),
        inside("one", 1, "float32"),
        inside("each", np.ones((1, count)), "bool"), inside("yes", [True], "bool"),
        outside("w", prefix_weights(model), "prefix.weights"),
    ]  # fmt: skip
    return _model("prefix", nodes, held, model)


def make_flow(model: ModelConfig) -> onnx.ModelProto:
    """The loop; `factor` and `rate` are initializers of its body."""
    split = [f"c{k}" for k in range(5)]
    body = [
        node("Gather", ["schedule", "k"], ["row"], axis=0),
        node("Split", ["row", "ones"], split, axis=0),
        node("Mul", ["factor", "x"], ["fx"]),
        node("Mul", ["rate", "c0"], ["rt"]),
        node("Add", ["fx", "rt"], ["f"]),
        node("Add", ["f", "read"], ["v0"]),
        node("Mul", ["c0", "v0"], ["tv"]),
        node("Sub", ["x", "tv"], ["ahead"]),
        node("Sub", ["pull_target", "ahead"], ["error"]),
        node("Mul", ["error", "weights"], ["weighted"]),
        node("Mul", ["c4", "weighted"], ["correction"]),
        node("Sub", ["v0", "correction"], ["v"]),
        node("Mul", ["c2", "v"], ["nv"]),
        node("Mul", ["c3", "old"], ["bl"]),
        node("Add", ["nv", "bl"], ["slope"]),
        node("Mul", ["c1", "slope"], ["moved"]),
        node("Add", ["x", "moved"], ["next"]),
        node("Identity", ["go"], ["goes"]),
    ]
    value, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    wide = model.max_action_dim
    loop = helper.make_graph(
        body,
        "loop",
        [
            value("k", TensorProto.INT64, []), value("go", TensorProto.BOOL, []),
            value("x", kind, ["h", wide]), value("old", kind, ["h", wide]),
        ],
        [value("goes", TensorProto.BOOL, []), value("next", kind, ["h", wide]),
         value("v", kind, ["h", wide])],
        [
            inside("ones", [1] * 5, "int64"),
            outside("factor", np.full(1, FACTOR), "flow.weights", 0),
            outside("rate", np.full(1, RATE), "flow.weights", 4),
        ],
    )  # fmt: skip
    nodes = [
        node("Cast", ["valid"], ["counts"], to=TensorProto.FLOAT),
        node("Reshape", ["counts", "column"], ["counted"]),
        node("Mul", ["keys", "counted"], ["seen"]),
        node("ReduceSum", ["seen"], ["sum"], keepdims=0),
        node("Mul", ["sum", "pull"], ["read"]),
        node("Unsqueeze", ["pull_weights", "second"], ["weights"]),
        node("Sub", ["noise", "noise"], ["still"]),
        node("Shape", ["schedule"], ["size"], start=0, end=1),
        node("Squeeze", ["size"], ["steps"]),
        node("Loop", ["steps", "", "noise", "still"], ["actions", "last"], body=loop),
    ]
    held = [
        inside("column", [1, -1, 1], "int64"), inside("second", [1], "int64"),
        inside("pull", PULL, "float32"),
        inside("schedule", np.zeros((1, 5)), "float32"),
        inside("pull_target", np.zeros((1, wide)), "float32"),
        inside("pull_weights", np.zeros(1), "float32"),
    ]  # fmt: skip
    return _model("flow", nodes, held, model)


def make_policy(model: ModelConfig) -> onnx.ModelProto:
    nodes = [node("Identity", ["noise"], ["actions"]), node("Identity", ["noise"], ["normalized"])]
    return _model("policy", nodes, [], model)


def make_graphs(model: ModelConfig) -> Graphs:
    makers: Mapping[str, Callable[[ModelConfig], onnx.ModelProto]] = {
        "vision": make_vision, "prefix": make_prefix, "flow": make_flow, "policy": make_policy,
    }  # fmt: skip
    return {name: make(model) for name, make in makers.items()}


def ports(name: str, model: ModelConfig) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of a graph, as the manifest says them."""
    f32 = partial(Port, dtype="float32")
    keys = [
        f32(name=n, shape=("layers", "n", model.kv_heads * model.head_dim))
        for n in ("keys", "values")
    ]
    keys.append(Port("valid", "bool", ("n",)))
    pixels = f32(name="pixels", shape=("cameras", 3, "height", "width"))
    images = f32(name="image_tokens", shape=("cameras", "t", model.text_width))
    noise = f32(name="noise", shape=("h", model.max_action_dim))
    found: dict[str, tuple[list[Port], list[Port]]] = {
        "vision": ([pixels], [images]),
        "prefix": (
            [
                images, Port("camera_mask", "bool", ("cameras",)), Port("tokens", "int64", ("l",)),
                Port("token_mask", "bool", ("l",)),
                f32(name="state", shape=(model.max_state_dim,)),
            ],
            keys,
        ),
        "flow": (
            [
                noise, *keys, f32(name="schedule", shape=("steps", 5)),
                f32(name="pull_target", shape=("pulled", model.max_action_dim)),
                f32(name="pull_weights", shape=("pulled",)),
            ],
            [replace(noise, name="actions")],
        ),
        "policy": ([noise], [replace(noise, name="actions"), replace(noise, name="normalized")]),
    }  # fmt: skip
    return tuple(found[name][0]), tuple(found[name][1])


def make_manifest(source: Source, **changes: Any) -> Manifest:
    """Of the folder that `write_folder` is about to write; its files are added there."""
    model = source.model
    return replace(
        Manifest(
            precision="float32",
            form="qdq",
            target="onnxruntime",
            opset=OPSET,
            ir=IR,
            custom_ops=False,
            plan=Plan.exact(model.num_steps),
            model=model,
            contract=source.contract,
            graphs={
                name: Graph(f"{name}.onnx", 1, *ports(name, model))
                for name in ("vision", "prefix", "flow", "policy")
            },
            files={},
            provenance={"source": "made up", "bundle": None, "precision": {"text": {"F32": 1}}},
        ),
        **changes,
    )


def write_folder(
    folder: Path,
    source: Source,
    graphs: Graphs | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    """An export folder of these graphs, its manifest changed."""
    folder.mkdir(parents=True)
    model = source.model
    for name, graph in (graphs or make_graphs(model)).items():
        (folder / f"{name}.onnx").write_bytes(graph.SerializeToString())
    (folder / "vision.weights").write_bytes(vision_weights(model).tobytes())
    (folder / "prefix.weights").write_bytes(prefix_weights(model).tobytes())
    (folder / "flow.weights").write_bytes(np.array([FACTOR, RATE], np.float32).tobytes())
    if source.tokenizer_file is not None:
        (folder / "tokenizer.json").write_bytes(source.tokenizer_file.read_bytes())
    made = make_manifest(source, **(manifest or {}))
    write_manifest(folder, replace(made, files=describe_files(folder)))
    return folder


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """export.json after `change`, with the sizes and digests of the files as they are now."""
    path = folder / "export.json"
    data = json.loads(path.read_text())
    for name, record in data["files"].items():
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            record.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    change(data)
    path.write_text(json.dumps(data))


def _model(
    name: str, nodes: list[Any], held: list[onnx.TensorProto], model: ModelConfig
) -> onnx.ModelProto:
    inputs, outputs = ports(name, model)

    def info(port: Port) -> Any:
        return helper.make_tensor_value_info(port.name, _KINDS[port.dtype], port.shape)

    graph = helper.make_graph(nodes, name, [*map(info, inputs)], [*map(info, outputs)], held)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="tests"
    )

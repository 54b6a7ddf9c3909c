"""A good export folder without the package onnx: its graphs are written byte by byte.

They compute nothing, but hold what the reader looks into: operators, a graph in an attribute, a
function, a sparse tensor, and tensors whose data is in another file.
"""

from __future__ import annotations

from pathlib import Path

from smolvla_edge.bundle import read_bundle
from smolvla_edge.onnx_folder import Graph, Manifest, Port, describe_files, write_manifest
from smolvla_edge.plan import Plan

_OPSET, _IR = 23, 10
_WEIGHTS = "all.weights"


def make_export(folder: Path, bundle: Path) -> None:
    """The export folder of a bundle's model and contract."""
    made = read_bundle(bundle)
    model = made.model
    folder.mkdir()
    wide = ("layers", "n", model.kv_heads * model.head_dim)
    keys = (
        Port("keys", "float32", wide),
        Port("values", "float32", wide),
        Port("valid", "bool", ("n",)),
    )
    pixels = Port("pixels", "float32", ("cameras", 3, 32, 32))
    images = Port("image_tokens", "float32", ("cameras", "t", model.text_width))
    noise = Port("noise", "float32", ("h", model.max_action_dim))
    actions = Port("actions", *_rest(noise))
    prompt = (
        Port("camera_mask", "bool", ("cameras",)),
        Port("tokens", "int64", ("l",)),
        Port("token_mask", "bool", ("l",)),
        Port("state", "float32", (model.max_state_dim,)),
    )
    numbers = (
        Port("schedule", "float32", ("steps", 5)),
        Port("pull_target", *_rest(noise)),
        Port("pull_weights", "float32", ("h",)),
    )
    ports = {
        "vision": ((pixels,), (images,)),
        "prefix": ((images, *prompt), keys),
        "flow": ((noise, *keys, *numbers), (actions,)),
        "policy": ((noise,), (actions, Port("normalized", *_rest(noise)))),
    }
    for name in ports:
        (folder / f"{name}.onnx").write_bytes(_model())
    (folder / _WEIGHTS).write_bytes(bytes(64))
    (folder / "tokenizer.json").write_bytes((bundle / "tokenizer.json").read_bytes())
    manifest = Manifest(
        precision="int4", form="qdq", target="onnxruntime", opset=_OPSET, ir=_IR, custom_ops=True,
        plan=Plan(steps=2), model=model, contract=made.contract,
        graphs={name: Graph(f"{name}.onnx", 3, *both) for name, both in ports.items()},
        files=describe_files(folder),
        provenance={"source": "fuzz", "bundle": made.digest, "precision": {"text": {"F32": 2}}},
    )  # fmt: skip
    write_manifest(folder, manifest)


def _rest(port: Port) -> tuple[str, tuple[int | str, ...]]:
    return port.dtype, port.shape


def _model() -> bytes:
    body = _graph(_node("Add"), _tensor("inner", 32))
    loop = _node("Loop", _field(5, _field(1, b"body") + _field(6, body)))
    sparse = _field(15, _field(1, _tensor("values", 16)) + _field(2, _tensor("places", 0)))
    graph = _graph(_node("MatMul"), _tensor("w", 0), _node("LinearW4", domain=b"smolvla_edge"))
    function = _field(1, b"LinearW4") + _node_field(_node("Mul")) + _field(10, b"smolvla_edge")
    return b"".join((
        _number(1, _IR), _field(2, b"fuzz"), _field(7, graph + _node_field(loop) + sparse),
        _field(8, _field(1, b"") + _number(2, _OPSET)), _field(14, _field(1, b"a")),
        _field(25, function),
    ))  # fmt: skip


def _graph(first: bytes, tensor: bytes, *more: bytes) -> bytes:
    return b"".join(map(_node_field, (first, *more))) + _field(5, tensor)


def _node_field(node: bytes) -> bytes:
    return _field(1, node)


def _node(kind: str, attribute: bytes = b"", domain: bytes = b"") -> bytes:
    return _field(1, b"x") + _field(4, kind.encode()) + attribute + _field(7, domain)


def _tensor(name: str, offset: int) -> bytes:
    said = {"location": _WEIGHTS, "offset": str(offset), "length": "32"}
    pairs = (_field(1, k.encode()) + _field(2, v.encode()) for k, v in said.items())
    outside = b"".join(_field(13, pair) for pair in pairs) + _number(14, 1)
    return _number(1, 8) + _number(2, 1) + _field(8, name.encode()) + outside


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])

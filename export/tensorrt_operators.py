"""Which operators and types TensorRT 10 documents, and whether a graph keeps to them.

Source: docs/operators.md of github.com/onnx/onnx-tensorrt, the table for TensorRT 8.5 (opset 17),
with what docs/Changelog.md there adds up to 10.3: LayerNormalization (8.6), INT64 wherever there
was INT32 (9.0), INT4 (10.0). Only operators that a policy may need are listed, and what came later
is left out on purpose: JetPack 6 has 10.3. Blocks and scales of INT4 follow the documentation of
IDequantizeLayer. The parser was never run on these graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from smolvla_edge.errors import ExportError, MissingExtraError
from smolvla_edge.export.tensorrt import BLOCKS, NAME

try:
    import onnx
    from onnx import TensorProto
except ImportError as error:
    raise MissingExtraError(
        "smolvla_edge.export needs onnx, and it is not installed; run: "
        "pip install 'smolvla-edge[export]'"
    ) from error

_FLOAT = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
_NUMBER = _FLOAT | {TensorProto.INT32, TensorProto.INT64}
_BOOL = frozenset({TensorProto.BOOL})
_ANY = _NUMBER | _BOOL
_GROUPS: tuple[tuple[frozenset[int], str], ...] = (
    (_BOOL, "And Not Or Xor"),
    (
        _FLOAT,
        "Conv Cos Erf Exp LayerNormalization Log MatMul Pow ReduceMax ReduceMean ReduceSum "
        "Reciprocal Sigmoid Sin Softmax Sqrt Tanh",
    ),
    (
        _NUMBER,
        "Add Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mul Neg Pad Range Sub",
    ),
    (
        _ANY,
        "Cast Concat Constant Expand Flatten Gather Identity Loop Reshape Shape Slice Split "
        "Squeeze Tile Transpose Unsqueeze Where",
    ),
    (_FLOAT, "DequantizeLinear"),
)
OPERATORS: Mapping[str, frozenset[int]] = {
    name: types for types, names in _GROUPS for name in names.split()
}
"""Operator -> element types (of onnx.TensorProto) that its data may have."""
_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})

_CONSTANT = {
    "DequantizeLinear": (0, 1), "Pad": (1, 2), "ReduceMax": (1,), "ReduceMean": (1,),
    "ReduceSum": (1,), "Slice": (3,), "Squeeze": (1,), "Unsqueeze": (1,),
}  # fmt: skip
"""Inputs that must be initializers: axes, amounts, weights of codes."""


def check_operators(model: onnx.ModelProto, where: str) -> None:
    """Raises ExportError naming the node for anything that the table above does not have.

    model: without its external data, or with.
    """
    _Check(model, where)


class _Check:
    def __init__(self, model: onnx.ModelProto, where: str) -> None:
        self._where = where
        if model.functions:
            self._refuse(f"functions {[function.name for function in model.functions]}")
        for opset in model.opset_import:
            if opset.domain or opset.version not in (20, 21):
                self._refuse(f"operator set {opset.domain or 'ai.onnx'} {opset.version}")
        # Only what the file says is relied on where it says it; inference fills the rest.
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        self._graph(inferred.graph, {}, {})

    def _graph(
        self,
        graph: onnx.GraphProto,
        outer: Mapping[str, int],
        outer_shapes: Mapping[str, list[int]],
    ) -> None:
        """outer: element types of the values around it; outer_shapes: of initializers there."""
        types = dict(outer)
        shapes = {**outer_shapes, **{t.name: list(t.dims) for t in graph.initializer}}
        for value in (*graph.input, *graph.output, *graph.value_info):
            types[value.name] = value.type.tensor_type.elem_type
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        defaults = {value.name for value in graph.input} & {t.name for t in graph.initializer}
        if defaults:
            self._refuse(f"inputs with defaults: {sorted(defaults)}")
        for node in graph.node:
            self._node(node, types, shapes)
            if node.op_type == "Loop":
                self._loop(node, shapes)
            for inner in _inner(node):
                self._graph(inner, types, shapes)

    def _node(
        self, node: onnx.NodeProto, types: Mapping[str, int], shapes: Mapping[str, list[int]]
    ) -> None:
        if node.domain or node.op_type not in OPERATORS:
            self._refuse(f"operator {node.domain or 'ai.onnx'}::{node.op_type}")
        allowed = OPERATORS[node.op_type]
        constant = _CONSTANT.get(node.op_type, ())
        data = [name for place, name in enumerate(node.input) if place not in constant and name]
        made = _BOOL if node.op_type in _COMPARISONS else allowed
        for names, known in ((data, allowed), (list(node.output), made)):
            for name in names:
                if types.get(name, 0) not in known:
                    kind = TensorProto.DataType.Name(types.get(name, 0))
                    self._refuse(f"{node.op_type} {node.name!r}: {name!r} of type {kind}")
        for place in constant:
            if place < len(node.input) and node.input[place] not in shapes:
                self._refuse(f"{node.op_type} {node.name!r}: input {place} is no initializer")
        if node.op_type == "DequantizeLinear":
            self._blocks(node, shapes)

    def _blocks(self, node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> None:
        attributes = {a.name: a.i for a in node.attribute}
        size = attributes.get("block_size", 0)
        (inputs, outputs), scales = shapes[node.input[0]], shapes[node.input[1]]
        whole = size in BLOCKS and scales == [inputs / size, outputs]
        if not whole or attributes.get("axis") != 0 or len(node.input) != 2:
            self._refuse(
                f"DequantizeLinear {node.name!r}: codes [{inputs}, {outputs}] with scales "
                f"{scales} in blocks of {size}"
            )

    def _loop(self, node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> None:
        """A settled number of passes, and no condition: the parser gives the body none."""
        (body,) = _inner(node)
        going = body.input[1].name
        used = any(going in inner.input for inner in body.node)
        if node.input[0] not in shapes or node.input[1] or used:
            self._refuse(f"Loop {node.name!r}: a condition, or a number of passes that may change")

    def _refuse(self, what: str) -> None:
        raise ExportError(
            f"{self._where}: expected what TensorRT 10 documents (export/tensorrt_operators.py), "
            f"got {what}. This is a bug of the target {NAME}; export for onnxruntime meanwhile"
        )


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g

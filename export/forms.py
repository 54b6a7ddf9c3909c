"""From a traced graph to one that runs: real weights, and codes in the form that was asked for.

    qdq            DequantizeLinear (opset 21) and MatMul: float32 products of what codes stand for
    matmulnbits    com.microsoft::MatMulNBits, what runtimes make of the first
    integer        8 bits: rows rounded to 8 bits too, and MatMulInteger, as the native backend
                   computes; 4 bits as in the first

4-bit products of the first and 8-bit ones of the last are nodes of our domain, LinearW4 and
LinearW8: functions of standard ONNX, which our library runs by its own kernels (functions.py).

Each weight is an initializer of the graph it is used in. In a Loop that matters: ONNX Runtime does
not find codes for a fusion in the graph outside, and fails to load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from smolvla_edge.codes import CodeFormat
from smolvla_edge.export.functions import DOMAIN
from smolvla_edge.export.layers import CODED
from smolvla_edge.export.stored import WeightsFile, block_of, scale_of
from smolvla_edge.export.tracing import PLACEHOLDER

MICROSOFT = "com.microsoft"
PLAIN = "plain"
"""As qdq, where there is no opset 23 for our functions to be written in. Nobody asks for it."""


@dataclass(frozen=True)
class Form:
    """name: of FORMS.  custom: what our library can run are nodes of our domain; without, their
    bodies stand in the graphs.  accuracy_level: of MatMulNBits, 0 or 4 (rows rounded to int8)."""

    name: str = "qdq"
    custom: bool = True
    accuracy_level: int = 0


def every_graph(graph: ir.Graph) -> Iterator[ir.Graph]:
    """The graph and those in attributes of its nodes, whatever the depth."""
    yield graph
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from every_graph(attribute.as_graph())


def weight_names(graph: ir.Graph) -> list[str]:
    """Of the placeholders in a traced graph."""
    return [
        name for name, value in graph.initializers.items() if PLACEHOLDER in value.metadata_props
    ]


def attach(
    graph: ir.Graph, files: Mapping[str, WeightsFile], codes: Mapping[str, CodeFormat], form: Form
) -> None:
    """Replace placeholders and coded products of a traced graph. files: by weight name."""
    for node in list(graph):
        if f"{node.domain}::{node.op_type}" == CODED:
            name = node.inputs[1].name or ""
            _place_codes(graph, node, name, files[name], codes[name], form)
    for name in weight_names(graph):
        value = graph.initializers[name]
        _fill(graph, value, files[name])


def _fill(graph: ir.Graph, value: ir.Value, file: WeightsFile) -> None:
    """Give a value what is stored under its name, through a Cast where it is stored narrower."""
    name = value.name or ""
    del value.metadata_props[PLACEHOLDER]
    wanted = value.dtype
    tensor = file.external(name)
    if tensor.dtype == wanted:
        value.const_value = tensor
        value.shape = ir.Shape(tensor.shape)
        return
    graph.initializers.pop(name)
    stored = _initializer(graph, name, file)
    cast = ir.node("Cast", [stored], {"to": int(wanted)}, name=f"{name}/widen")
    value_of(cast, wanted, tensor.shape, f"{name}/wide")
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    _first(graph, cast)


def _place_codes(
    graph: ir.Graph,
    node: ir.Node,
    name: str,
    file: WeightsFile,
    format: CodeFormat,
    form: Form,
) -> None:
    x, placeholder = node.inputs
    y = node.outputs[0]
    shape, dtype = y.shape, y.dtype
    graph.initializers.pop(name, None)
    codes = _initializer(graph, name, file)
    scales = _initializer(graph, scale_of(name), file)
    nodes: list[ir.Node] = []
    if scales.dtype != dtype:
        cast = ir.node("Cast", [scales], {"to": int(dtype)}, name=f"{name}/scales")
        scales = value_of(cast, dtype, scales.shape, f"{scale_of(name)}/wide")
        nodes.append(cast)
    width = placeholder.shape
    if form.name == "integer" and format.bits == 8:
        nodes.append(ir.node("LinearW8", [x, codes, scales], domain=DOMAIN, name=f"{name}/linear"))
    elif form.name == "matmulnbits":
        nodes.append(_nbits(x, codes, scales, format, form, int(width[0]), int(width[1]), name))
    elif format.bits == 4 and form.name != PLAIN:
        nodes.append(
            ir.node(
                "LinearW4",
                [x, codes, scales],
                {"group": block_of(format)},
                domain=DOMAIN,
                name=f"{name}/linear",
            )
        )
    else:
        wide = ir.node(
            "DequantizeLinear",
            [codes, scales],
            {"axis": 0, "block_size": block_of(format)},
            name=f"{name}/dequantize",
        )
        value_of(wide, dtype, width, f"{name}/wide")
        nodes += [wide, ir.node("MatMul", [x, wide.outputs[0]], name=f"{name}/linear")]
    value_of(nodes[-1], dtype, shape, f"{name}/product")
    ir.convenience.replace_all_uses_with(y, nodes[-1].outputs[0])
    graph.insert_before(node, nodes)
    graph.remove(node, safe=True)


def _nbits(
    x: ir.Value,
    codes: ir.Value,
    scales: ir.Value,
    format: CodeFormat,
    form: Form,
    inputs: int,
    outputs: int,
    name: str,
) -> ir.Node:
    return ir.node(
        "MatMulNBits",
        [x, codes, scales],
        {
            "K": inputs,
            "N": outputs,
            "bits": format.bits,
            "block_size": block_of(format),
            "accuracy_level": form.accuracy_level,
        },
        domain=MICROSOFT,
        name=f"{name}/linear",
    )


def _initializer(graph: ir.Graph, name: str, file: WeightsFile) -> ir.Value:
    """Of the graph; a weight that two nodes use is there once."""
    if name in graph.initializers and graph.initializers[name].const_value is not None:
        return graph.initializers[name]
    tensor = file.external(name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
    )
    graph.register_initializer(value)
    return value


def value_of(
    node: ir.Node, dtype: ir.DataType | None, shape: ir.Shape | None, name: str
) -> ir.Value:
    """The node's first output, with a type."""
    value = node.outputs[0]
    value.name = name
    if dtype is not None:
        value.type = ir.TensorType(dtype)
    value.shape = shape
    return value


def _first(graph: ir.Graph, node: ir.Node) -> None:
    begin = next(iter(graph), None)
    if begin is None:
        graph.append(node)
    else:
        graph.insert_before(begin, node)


def count_nodes(model: ir.Model) -> int:
    """Nodes of all graphs of a model; a function's body counts once for each of its calls."""
    bodies: dict[tuple[str, str], int] = {
        (function.domain, function.name): len(list(function))
        for function in model.functions.values()
    }
    count: Callable[[ir.Node], int] = lambda node: bodies.get((node.domain, node.op_type), 1)  # noqa: E731
    return sum(count(node) for graph in every_graph(model.graph) for node in graph)

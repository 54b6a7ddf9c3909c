"""Graphs put one behind the other: the single graph `policy` out of the pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from smolvla_edge.export.forms import every_graph


class Joined:
    """A graph that grows by whole models. Values keep their names behind a prefix of their piece;
    weights keep theirs, which say whose they are."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._inputs: list[ir.Value] = []
        self._initializers: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._opsets: dict[str, int] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def default(self, value: ir.Value, tensor: ir.TensorProtocol) -> None:
        """What an input holds when a caller gives none."""
        value.const_value = tensor
        self._initializers[value.name or ""] = value

    def constant(self, name: str, values: np.ndarray) -> ir.Value:
        tensor = ir.tensor(values, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
        )
        self._initializers[name] = value
        return value

    def append(
        self, prefix: str, model: ir.Model, inputs: Mapping[str, ir.Value]
    ) -> list[ir.Value]:
        """The model's nodes, its inputs replaced by values of this graph -> its outputs."""
        graph = model.graph
        outputs = list(graph.outputs)
        graph.outputs.clear()
        for value in list(graph.inputs):
            ir.convenience.replace_all_uses_with(value, inputs[value.name or ""])
        for each in every_graph(graph):
            for node in each:
                node.name = f"{prefix}/{node.name or node.outputs[0].name}"
                for value in node.outputs:
                    if value.name:
                        value.name = f"{prefix}/{value.name}"
                    _own_sizes(value, prefix)
            if each is not graph:
                for value in each.inputs:
                    value.name = f"{prefix}/{value.name}"
        for name, value in list(graph.initializers.items()):
            graph.initializers.pop(name)
            if value in graph.inputs:
                continue  # a default of the piece alone
            if value.const_value is not None and not isinstance(
                value.const_value, ir.ExternalTensor
            ):
                value.name = f"{prefix}/{name}"
            self._initializers[value.name or ""] = value
        graph.inputs.clear()
        nodes = list(graph)
        graph.remove(nodes)
        self._nodes += nodes
        self._opsets.update(model.opset_imports)
        return outputs

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        attributes: Mapping[str, ir.Attr | int] | None = None,
    ) -> ir.Value:
        node = ir.node(op_type, list(inputs), dict(attributes or {}), name=name)
        node.outputs[0].name = name
        self._nodes.append(node)
        return node.outputs[0]

    def model(self, outputs: Mapping[str, ir.Value], ir_version: int) -> ir.Model:
        for name, value in outputs.items():
            value.name = name
        graph = ir.Graph(
            self._inputs,
            list(outputs.values()),
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            name=self._name,
            opset_imports=self._opsets,
        )
        return ir.Model(graph, ir_version=ir_version)


def _own_sizes(value: ir.Value, prefix: str) -> None:
    """Sizes of one name in two pieces are two: a runtime would take them as one."""
    if value.shape is not None:
        value.shape = ir.Shape(
            side if isinstance(side, int) else f"{prefix}/{side}" for side in value.shape
        )

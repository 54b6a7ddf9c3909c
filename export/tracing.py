"""torch.onnx.export of one module, to a graph with named axes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

OPSET = 23
IR_VERSION = 10
PLACEHOLDER = "smolvla_edge.placeholder"
"""Marks a weight of a traced graph that is to be filled."""
_MOST = 1 << 20


def trace(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    opset: int = OPSET,
) -> ir.Model:
    """The module's forward over examples of its inputs, in order; axes: {input: {axis: name}} of
    those whose length may change (their examples are longer than 1). Weights stay placeholders."""
    dims: dict[str, Any] = {}
    shapes: list[Any] = []
    for name in inputs:
        named = axes.get(name, {})
        for axis in named.values():
            dims.setdefault(axis, torch.export.Dim(axis, min=1, max=_MOST))
        shapes.append({axis: dims[label] for axis, label in named.items()})
    _tell_apart(module)
    named_parameters = {name for name, _ in module.named_parameters()}
    fixed = list(inputs)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=opset,
            verbose=False,
            input_names=fixed,
            output_names=list(outputs),
            dynamic_shapes=_as_signature(module, shapes),
            optimize=True,
        )
    if program is None:  # torch's types say so
        raise RuntimeError("torch.onnx.export gave no program")
    model = program.model
    _forget_origins(model)
    for value in model.graph.initializers.values():
        # A placeholder must never be read; what is not one (a table of ours) is kept.
        if value.name in named_parameters:
            value.metadata_props[PLACEHOLDER] = "1"
    return model


def _forget_origins(model: ir.Model) -> None:
    """Stack traces and names of torch's own: half a file, and paths of whoever exported it."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _tell_apart(module: nn.Module) -> None:
    """Give every placeholder contents of its own: the exporter joins weights that are the same."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            for place, digit in enumerate(divmod(i, 100)):  # int8 and float16 hold both
                parameter.view(-1)[place] = digit


def _as_signature(module: nn.Module, shapes: Sequence[Any]) -> Any:
    """dynamic_shapes as torch.export wants them: a variadic argument is a tuple of its own."""
    import inspect

    parameters = list(inspect.signature(module.forward).parameters.values())
    if parameters[-1].kind is not inspect.Parameter.VAR_POSITIONAL:
        return tuple(shapes)
    plain = len(parameters) - 1
    return (*shapes[:plain], tuple(shapes[plain:]))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not there and names it changed."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)

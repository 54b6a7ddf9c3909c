"""The denoise loop: one traced step as the body of an ONNX Loop behind what all steps share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from smolvla_edge.export.tracing import PLACEHOLDER

CARRIED = ("x", "last")
PER_STEP = ("row", "moment")


def loop_over(
    front: ir.Model,
    step: ir.Model,
    schedule: ir.Value,
    moments: ir.Value,
    count: ir.Value | None = None,
) -> None:
    """Append to `front` a Loop of `step`, once for each row of `schedule`; its outputs become the
    loop's x. count: how many rows these are, where it is settled. TensorRT then gives the body no
    condition to hand on.

    The step's inputs are, in order, x and last, row and moment (of this step: rows of `schedule`
    and of `moments`), then values of `front` by name: its inputs and its outputs.
    """
    outer = front.graph
    known = {value.name: value for value in (*outer.inputs, *outer.outputs)}
    noise = outer.inputs[0]
    nodes: list[ir.Node] = []

    iteration = _scalar("iteration", ir.DataType.INT64)
    going = _scalar("going", ir.DataType.BOOL)
    body = step.graph
    carried = [value for value in body.inputs if value.name in CARRIED]
    picked = {
        "row": _pick(nodes, schedule, iteration, "row"),
        "moment": _pick(nodes, moments, iteration, "moment"),
    }
    for value in list(body.inputs):
        if value.name in picked:
            ir.convenience.replace_all_uses_with(value, picked[value.name])
        elif value.name not in CARRIED:
            ir.convenience.replace_all_uses_with(value, known[value.name])
    after, velocity = body.outputs
    if count is None:
        going_on = ir.node("Identity", [going], name="go_on")
    else:
        yes = ir.AttrTensor("value", ir.tensor(np.array(True)))
        going_on = ir.node("Constant", [], {"value": yes}, name="go_on")
    going_on.outputs[0].name = "going_on"
    going_on.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
    going_on.outputs[0].shape = ir.Shape([])

    inside = list(body)
    initializers = list(body.initializers.values())
    _name_apart(inside, initializers)
    body.outputs.clear()
    body.remove(inside)
    body.inputs.clear()
    for value in initializers:
        body.initializers.pop(value.name or "")
    loop_body = ir.Graph(
        [iteration, going, *carried],
        [going_on.outputs[0], after, velocity],
        nodes=[*nodes, *inside, going_on],
        initializers=initializers,
        name="denoise_step",
    )

    still = ir.node("Sub", [noise, noise], name="no_velocity_yet")
    still.outputs[0].name = "no_velocity"
    before, condition = [still], None
    if count is None:
        steps = ir.node("Shape", [schedule], {"start": 0, "end": 1}, name="count_steps")
        steps.outputs[0].name = "steps"
        # Without a condition onnx.reference runs no step at all.
        always = ir.node("Constant", [], {"value": ir.tensor(np.array(True))}, name="always")
        always.outputs[0].name = "always"
        before, count, condition = [steps, still, always], steps.outputs[0], always.outputs[0]
    loop = ir.Node(
        "",
        "Loop",
        [count, condition, noise, still.outputs[0]],
        [ir.Attr("body", ir.AttributeType.GRAPH, loop_body)],
        num_outputs=2,
        name="denoise",
    )
    actions, unused = loop.outputs
    actions.name, unused.name = "actions", "last_velocity"
    actions.type, actions.shape = noise.type, noise.shape
    outer.outputs.clear()
    outer.extend([*before, loop])
    outer.outputs.append(actions)
    front.opset_imports.update(step.opset_imports)


def _name_apart(nodes: list[ir.Node], initializers: list[ir.Value]) -> None:
    """A body's names may not be those of the graph around it. Weights have names of their own."""
    for node in nodes:
        node.name = f"step/{node.name}"
        for value in node.outputs:
            value.name = f"step/{value.name}"
    for value in initializers:
        if PLACEHOLDER not in value.metadata_props:
            value.name = f"step/{value.name}"


def _pick(nodes: list[ir.Node], table: ir.Value, index: ir.Value, name: str) -> ir.Value:
    node = ir.node("Gather", [table, index], {"axis": 0}, name=f"pick_{name}")
    value = node.outputs[0]
    value.name = name
    value.type = table.type
    value.shape = ir.Shape(list(table.shape)[1:]) if table.shape is not None else None
    nodes.append(node)
    return value


def _scalar(name: str, dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape([]))


def default(graph: ir.Graph, name: str, values: np.ndarray) -> None:
    """Give an input of the graph a value that holds when a caller gives none."""
    value = next(value for value in graph.inputs if value.name == name)
    value.const_value = ir.tensor(values, name=name)
    graph.register_initializer(value)

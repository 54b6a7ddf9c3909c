"""Each graph of an export: a module traced over small examples, under the names of docs/onnx.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from smolvla_edge.config import ModelConfig
from smolvla_edge.contract import Contract
from smolvla_edge.export.fixed_flow import FixedFront, fixed_flow
from smolvla_edge.export.flow import Front, Step
from smolvla_edge.export.layers import Arithmetic
from smolvla_edge.export.loop import default, loop_over
from smolvla_edge.export.prefix import Prefix, expert_layers
from smolvla_edge.export.tracing import trace
from smolvla_edge.export.vision import Vision
from smolvla_edge.flow_rows import COLUMNS
from smolvla_edge.plan import Plan

# Lengths of axes in examples: all different, none of them 1, which tracing would take for fixed.
_CAMERAS, _WORDS, _ROWS, _PREFIX, _STEPS = 2, 3, 5, 7, 4
_SHARED = ("cos_self", "sin_self", "cos_cross", "sin_cross", "mask_self", "mask_cross")


@dataclass(frozen=True)
class Setting:
    """What is exported. frame: height and width of the pixels that the vision tower reads."""

    model: ModelConfig
    contract: Contract
    plan: Plan
    how: Arithmetic
    frame: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        patch = self.model.patch_size
        return self.frame[0] // patch, self.frame[1] // patch

    @property
    def tokens_per_image(self) -> int:
        return self.model.tokens_per_image(self.frame[1], self.frame[0])


def vision_graph(setting: Setting) -> ir.Model:
    rows, columns = setting.grid
    module = Vision(setting.how, setting.model, rows * columns, setting.plan.skip.vision)
    pixels = torch.zeros(_CAMERAS, 3, *setting.frame)
    axes = {"pixels": {0: "cameras"}}
    return trace(module, {"pixels": pixels}, ["image_tokens"], axes, setting.how.opset)


def prefix_graph(setting: Setting) -> ir.Model:
    model = setting.model
    inputs = {
        "image_tokens": torch.zeros(_CAMERAS, setting.tokens_per_image, model.text_width),
        "camera_mask": torch.ones(_CAMERAS, dtype=torch.bool),
        "tokens": torch.zeros(_WORDS, dtype=torch.int64),
        "token_mask": torch.ones(_WORDS, dtype=torch.bool),
        "state": torch.zeros(model.max_state_dim),
    }
    axes = {
        "image_tokens": {0: "cameras"},
        "camera_mask": {0: "cameras"},
        "tokens": {0: "words"},
        "token_mask": {0: "words"},
    }
    module = Prefix(setting.how, model, setting.plan)
    made = trace(module, inputs, ["keys", "values", "valid"], axes, setting.how.opset)
    for value in made.graph.outputs:  # not as a sum of what the parts are called
        shape = value.shape or ir.Shape([])
        value.shape = ir.Shape(side if isinstance(side, int) else "prefix" for side in shape)
    return made


def flow_graph(setting: Setting, schedule: np.ndarray) -> ir.Model:
    """schedule: float32 [steps, 5], what holds when a caller gives none; of a graph of basic
    operators, what holds."""
    if not setting.how.fused:
        return _fixed_flow_graph(setting, schedule)
    model, how = setting.model, setting.how
    layers = len(expert_layers(model, setting.plan))
    kv = model.kv_heads * model.head_dim
    noise = torch.zeros(_ROWS, model.max_action_dim)
    inputs = {
        "noise": noise,
        "keys": torch.zeros(layers, _PREFIX, kv),
        "values": torch.zeros(layers, _PREFIX, kv),
        "valid": torch.ones(_PREFIX, dtype=torch.bool),
        "schedule": torch.zeros(_STEPS, len(COLUMNS)),
    }
    kept = [f"{kind}_{i}" for kind in ("key", "value") for i in range(layers)]
    axes = {
        "noise": {0: "horizon"},
        "keys": {1: "prefix"},
        "values": {1: "prefix"},
        "valid": {0: "prefix"},
        "schedule": {0: "steps"},
    }
    front = trace(Front(how, model), inputs, ["moments", *_SHARED, *kept], axes)
    step = trace(Step(how, model, setting.plan), *_step_examples(setting, layers, kept, noise))
    for name, shape in (("pull_target", [None, model.max_action_dim]), ("pull_weights", [None])):
        front.graph.inputs.append(
            ir.Value(
                name=name,
                type=ir.TensorType(ir.DataType.FLOAT),
                shape=ir.Shape(["pulled" if side is None else side for side in shape]),
            )
        )
    given = next(value for value in front.graph.inputs if value.name == "schedule")
    loop_over(front, step, given, front.graph.outputs[0])
    default(front.graph, "schedule", schedule)
    default(front.graph, "pull_target", np.zeros((1, model.max_action_dim), np.float32))
    default(front.graph, "pull_weights", np.zeros(1, np.float32))
    return front


def _fixed_flow_graph(setting: Setting, schedule: np.ndarray) -> ir.Model:
    model, how = setting.model, setting.how
    rows = setting.plan.rows(model.chunk_size)
    layers = len(expert_layers(model, setting.plan))
    noise = torch.zeros(rows, model.max_action_dim)
    kept = [f"{kind}_{i}" for kind in ("key", "value") for i in range(layers)]
    keys = torch.zeros(layers, _PREFIX, model.kv_heads * model.head_dim)
    inputs = {"noise": noise, "keys": keys, "values": keys.clone()}
    inputs["valid"] = torch.ones(_PREFIX, dtype=torch.bool)
    axes = {"keys": {1: "prefix"}, "values": {1: "prefix"}, "valid": {0: "prefix"}}
    front = trace(FixedFront(how, model, rows), inputs, [*_SHARED, *kept], axes, how.opset)
    examples, outputs, free = _step_examples(setting, layers, kept, noise)
    free = {
        name: {axis: word for axis, word in of.items() if word != "horizon"}
        for name, of in free.items()
    }
    step = trace(Step(how, model, setting.plan), examples, outputs, free, how.opset)
    return fixed_flow(front, step, schedule)


def _step_examples(
    setting: Setting, layers: int, kept: list[str], noise: Tensor
) -> tuple[dict[str, Tensor], list[str], dict[str, dict[int, str]]]:
    """inputs, outputs and axes of a denoise step."""
    rows, model, dtype = len(noise), setting.model, setting.how.dtype
    kv, half = model.kv_heads * model.head_dim, model.head_dim // 2
    every = _PREFIX + rows

    def rotation() -> Tensor:
        return torch.zeros(1, rows, half, dtype=dtype)

    inputs = {
        "x": noise,
        "last": torch.zeros_like(noise),
        "row": torch.zeros(len(COLUMNS)),
        "moment": torch.zeros(model.expert_width, dtype=dtype),
        "pull_target": torch.zeros(rows, model.max_action_dim),
        "pull_weights": torch.zeros(rows),
        "cos_self": rotation(),
        "sin_self": rotation(),
        "cos_cross": rotation(),
        "sin_cross": rotation(),
        "mask_self": torch.ones(rows, every, dtype=torch.bool),
        "mask_cross": torch.ones(rows, _PREFIX, dtype=torch.bool),
        **{name: torch.zeros(1, _PREFIX, kv, dtype=dtype) for name in kept},
    }
    of_rows = ("x", "last", "pull_target", "pull_weights")
    axes: dict[str, dict[int, str]] = {name: {0: "horizon"} for name in of_rows}
    axes |= {
        f"{part}_{kind}": {1: "horizon"} for part in ("cos", "sin") for kind in ("self", "cross")
    }
    axes |= {"mask_self": {0: "horizon", 1: "every"}, "mask_cross": {0: "horizon", 1: "prefix"}}
    axes |= {name: {1: "prefix"} for name in kept}
    return inputs, ["x_after", "velocity"], axes

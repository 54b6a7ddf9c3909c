"""The graph `flow` of a settled plan: steps, their times and the number of rows are constants.

For runtimes that know no defaults of inputs and no float64. What `flow.py` computes of the times
is a table here, a weight named `flow.moments`. The strength of the pull is that of the policy's own
settings at every step; `pull_weights` of zeros is no pull.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from smolvla_edge.config import ModelConfig
from smolvla_edge.export.layers import Arithmetic, Rotation
from smolvla_edge.export.loop import loop_over
from smolvla_edge.export.stored import MOMENTS
from smolvla_edge.export.tracing import PLACEHOLDER


class FixedFront(nn.Module):
    """keys and values [layers, n, kv], valid [n] -> what `Step` takes after its own inputs.
    noise is not read: it is here to be an input of the graph."""

    def __init__(self, how: Arithmetic, config: ModelConfig, rows: int) -> None:
        super().__init__()
        self.rows, self.dtype = rows, how.dtype
        self.rotation = Rotation(config.head_dim, config.rope_theta)

    def forward(
        self, noise: Tensor, keys: Tensor, values: Tensor, valid: Tensor
    ) -> tuple[Tensor, ...]:
        own = torch.arange(self.rows)
        positions = valid.float().sum() + own.float()
        mask_cross = valid[None, :].expand(self.rows, valid.shape[0])
        mask_self = torch.cat((mask_cross, own[None, :] <= own[:, None]), 1)
        kept = [*keys.to(self.dtype).split(1), *values.to(self.dtype).split(1)]
        return (
            *self.rotation(positions, self.dtype),
            *self.rotation(own, self.dtype),
            mask_self,
            mask_cross,
            *kept,
        )


def fixed_flow(front: ir.Model, step: ir.Model, schedule: np.ndarray) -> ir.Model:
    """The loop of `step` behind `front`, a traced FixedFront. schedule: float32 [steps, 5]."""
    graph = front.graph
    known = {value.name: value for value in step.graph.inputs}
    for name in ("pull_target", "pull_weights"):
        value = known[name]
        graph.inputs.append(ir.Value(name=name, type=value.type, shape=value.shape))
    moment = known["moment"]
    moments = ir.Value(
        name=MOMENTS,
        type=moment.type,
        shape=ir.Shape([len(schedule), *(moment.shape or ())]),
        const_value=ir.tensor(np.zeros(0, np.float32)),  # never read, as of every weight
        metadata_props={PLACEHOLDER: "1"},
    )
    rows = _constant("schedule", schedule)
    count = _constant("steps", np.array(len(schedule), np.int64))
    for value in (moments, rows, count):
        graph.register_initializer(value)
    loop_over(front, step, rows, moments, count)
    return front


def _constant(name: str, values: np.ndarray) -> ir.Value:
    tensor = ir.tensor(values, name=name)
    return ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
    )

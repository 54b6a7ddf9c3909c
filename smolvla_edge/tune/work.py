"""What a call computes under a plan, counted in multiply-adds of its matrix products.

The count steers the search, because it is the same on every machine and at every load; how long a
plan takes is measured afterwards, on the device. Softmax, norms and activations are not counted,
and an operation counts the same in every precision: counts of two bundles say nothing about each
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smolvla_edge.config import ModelConfig
from smolvla_edge.plan import Plan


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one call or, summed, of many."""

    vision: float = 0.0
    prefix: float = 0.0
    flow: float = 0.0

    @property
    def total(self) -> float:
        return self.vision + self.prefix + self.flow

    def __add__(self, other: Work) -> Work:
        return Work(self.vision + other.vision, self.prefix + other.prefix, self.flow + other.flow)


def call_work(
    model: ModelConfig,
    plan: Plan,
    *,
    patches: Sequence[tuple[int, float]],
    words: int,
    evaluations: int,
) -> Work:
    """Of one call. patches: for each camera that was seen the patches of its frame and the part of
    them that was computed (1 without a cache). words: tokens of the instruction. evaluations: of
    the velocity, as many as took place."""
    tokens = [count // model.scale_factor**2 for count, _ in patches]
    special = 3 if model.add_image_special_tokens else 0
    rows = sum(tokens) + special * len(tokens) + words + 1
    once, steps = _expert(model, plan, rows, evaluations)
    return Work(
        vision=sum(_vision(model, plan, count, part) for count, part in patches),
        prefix=_prefix(model, plan, rows) + once,
        flow=steps,
    )


def _vision(model: ModelConfig, plan: Plan, patches: int, part: float) -> float:
    """Computed rows attend to all of the frame's."""
    rows, width = patches * part, model.vision_width
    layers = model.vision_layers - len(plan.skip.vision)
    embed = rows * 3 * model.patch_size**2 * width
    linears = rows * width * (4 * width + 2 * model.vision_mlp)
    attention = 2 * rows * patches * width
    connector = rows * width * model.text_width  # scale^2 rows of this width are one token's input
    return embed + layers * (linears + attention) + connector


def _prefix(model: ModelConfig, plan: Plan, rows: int) -> float:
    """A skipped layer still makes its queries, keys and values, as the one at an exit does; the
    last of the model keys and values alone, whatever is skipped."""
    inner, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    keys = rows * model.text_width * 2 * kv
    queries = rows * model.text_width * inner
    rest = rows * (
        inner * model.text_width + 2 * rows * inner + 3 * model.text_width * model.text_mlp
    )
    last, ends = model.last_used_text_layer, keys
    if plan.exit is not None:
        last = (plan.exit - 1) // model.expert_layer_stride * model.expert_layer_stride
        ends += queries
    skipped = sum(layer < last for layer in plan.skip.vlm)
    return last * (keys + queries) + (last - skipped) * rest + ends


def _expert(model: ModelConfig, plan: Plan, prefix: int, evaluations: int) -> tuple[float, float]:
    """(once a call: keys and values of cross-attention; all evaluations)."""
    rows = plan.rows(model.chunk_size)
    inner, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    width = model.expert_width
    once = 0.0
    layers: list[float] = []
    beyond = model.text_layers if plan.exit is None else plan.exit
    for index in range(model.expert_layers):
        runs = index not in plan.skip.expert and index * model.expert_layer_stride < beyond
        cost: float = rows * width * (2 * inner + 3 * model.expert_mlp)
        if model.is_self_layer(index * model.expert_layer_stride):
            own = (rows + 1) / 2  # causal
            cost += rows * width * 2 * kv + 2 * rows * (prefix + own) * inner
        else:
            cost += 2 * rows * prefix * inner
            once += 2 * prefix * kv * kv if runs else 0.0
        layers.append(cost if runs else 0.0)
    ends = rows * width * (2 * model.max_action_dim + width)
    total = 0.0
    for number in range(evaluations):
        kept = plan.skip.reuse[number] if number < len(plan.skip.reuse) else ()
        total += ends + sum(cost for index, cost in enumerate(layers) if index not in kept)
    return once, total

"""Which layers learn to stand in for skipped ones, and what they learn.

vision, expert   the layer before a gap learns what came out after it: all later layers then read
                 what they know. Where the gap is at the beginning, the layer after it learns that.
vlm              the first skipped layer's keys and values are right, since it still projects them
                 from what the layer before gives. So that one is left alone: the later skipped ones
                 learn their own keys and values, and the layer after the gap learns its keys,
                 values and output, all from what came in before the gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smolvla_edge.config import ModelConfig
from smolvla_edge.errors import PlanError
from smolvla_edge.plan import PARTS, Skip


@dataclass(frozen=True)
class Lesson:
    """Layer `layer` of a part learns the unskipped model's state after layer `until`; of the
    language model also its own keys and values, and nothing else with `keys_only`."""

    part: str
    layer: int
    until: int
    keys_only: bool = False

    @property
    def module(self) -> str:
        """The layer's name in the model; its tensors' names begin so."""
        return f"{'text' if self.part == 'vlm' else self.part}.layers.{self.layer}"

    def describe(self) -> str:
        """What is learnt, in words."""
        if self.part != "vlm":
            return f"the output of layer {self.until}"
        return "its own keys and values" + ("" if self.keys_only else " and output")


def lessons(model: ModelConfig, skip: Skip) -> list[Lesson]:
    """In the order of the computation, in which they are to be learnt. Raises PlanError when
    nothing is skipped that matters, or when a part has no layer left."""
    last = model.last_used_text_layer
    counts = {"vision": model.vision_layers, "expert": model.expert_layers}
    for part, count in counts.items():
        if len(getattr(skip, part)) >= count:
            raise PlanError(f"skip.{part}: expected a layer that is left to learn, got all {count}")
    found = {
        "vision": _before(counts["vision"], skip.vision, "vision"),
        "vlm": _after(last, [layer for layer in skip.vlm if layer < last]),
        "expert": _before(counts["expert"], skip.expert, "expert"),
    }
    ordered = [lesson for part in PARTS for lesson in found[part]]
    if not ordered:
        raise PlanError(
            "expected layers to skip (skip.vision, skip.vlm, skip.expert) whose absence changes "
            "actions, got none: there is nothing to heal"
        )
    return ordered


def _before(count: int, gone: Sequence[int], part: str) -> list[Lesson]:
    kept = [layer for layer in range(count) if layer not in gone]
    ends = [*(layer - 1 for layer in kept[1:]), count - 1]
    return [
        Lesson(part, layer, end)
        for layer, end in zip(kept, ends, strict=True)
        if end > layer or (layer == kept[0] and layer > 0)
    ]


def _after(last: int, gone: Sequence[int]) -> list[Lesson]:
    """Of the language model, whose layer `last` ends after its keys and values."""
    found = []
    for layer in range(1, last + 1):
        if layer - 1 in gone:
            found.append(Lesson("vlm", layer, layer, keys_only=layer in gone or layer == last))
    return found

"""What a model takes of memory and disk, computed before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from smolvla_edge.codes import INPUT_SCALE, SCALE
from smolvla_edge.config import ModelConfig
from smolvla_edge.safetensors_file import TensorEntry

_PANEL = 32  # outputs of a packed weight come in panels of this many (csrc/cpu/pack.h)
_MAPPED = "text.embed.weight"  # gathered from the file, never copied
_TABLE = "vision.position.weight"  # added in float32, and kept so
_KEPT_BYTES = {"BF16": 2, "I8": 1, "U8": 1}  # of an element as it is packed; of U8 two codes


@dataclass(frozen=True)
class Need:
    """Bytes. weights: packed; buffers: an upper bound of activations, keys and values."""

    what: str
    weights: int
    buffers: int


def model_need(
    what: str, model: ModelConfig, tensors: Mapping[str, Any], core: Any, threads: int
) -> Need:
    """`tensors` are those an engine gets: {canonical name: entry with dtype and shape}."""
    weights = sum(_packed(name, entry) for name, entry in tensors.items() if name != _MAPPED)
    return Need(what, weights, int(core.buffer_bound(model.to_dict(), threads)))


def reference_need(core: Any, threads: int) -> Need:
    """Of a policy of smolvla_base's architecture and dtypes, for when none was named."""
    from smolvla_edge.names import canonical_name, expected_tensors
    from smolvla_edge.synthetic import reference_model, weight_layouts

    model = reference_model()
    live = {name for name, spec in expected_tensors(model).items() if not spec.dead}
    named = {canonical_name(layout.name): layout for layout in weight_layouts(model)}
    tensors = {name: layout for name, layout in named.items() if name in live}
    return model_need("a policy of SmolVLA's size", model, tensors, core, threads)


def _packed(name: str, entry: TensorEntry) -> int:
    """Matrices in bfloat16 and of codes stay so, float16 is widened; outputs are padded to whole
    panels. Vectors, scales of codes and the position table are float32.
    """
    if len(entry.shape) < 2 or name == _TABLE or name.endswith((SCALE, INPUT_SCALE)):
        return prod(entry.shape) * 4
    out = -(-entry.shape[0] // _PANEL) * _PANEL
    return out * prod(entry.shape[1:]) * _KEPT_BYTES.get(entry.dtype, 4)

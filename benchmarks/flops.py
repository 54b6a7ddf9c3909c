"""Floating-point operations of one chunk, per stage (a multiply and an add count as two).

Two counts: `exact_flops` is the work left after the exact reductions, which is what our engine
does; `reference_flops` is what LeRobot computes. Softmax, norms and activations are not counted.
"""

from __future__ import annotations

from typing import Any

Counts = dict[str, float]


def _vision(model: Any, cameras: int) -> float:
    width, height = model.resize or (model.image_size, model.image_size)
    patches = (width // model.patch_size) * (height // model.patch_size)
    pixels = 3 * model.patch_size**2
    embed = 2 * patches * pixels * model.vision_width
    projections = 2 * patches * model.vision_width * 4 * model.vision_width
    attention = 4 * patches**2 * model.vision_width
    mlp = 2 * patches * 2 * model.vision_width * model.vision_mlp
    shuffled = model.vision_width * model.scale_factor**2
    tokens = patches // model.scale_factor**2
    connector = 2 * tokens * shuffled * model.text_width
    return cameras * (embed + model.vision_layers * (projections + attention + mlp) + connector)


def image_tokens(model: Any) -> int:
    """Prefix rows of one camera."""
    width, height = model.resize or (model.image_size, model.image_size)
    patches = (width // model.patch_size) * (height // model.patch_size)
    special = 3 if model.add_image_special_tokens else 0
    return patches // model.scale_factor**2 + special


def _text_layer(model: Any, rows: int) -> tuple[float, float]:
    """(all of it, K and V projections only)."""
    inner = model.heads * model.head_dim
    kv = 2 * rows * model.text_width * 2 * model.kv_heads * model.head_dim
    rest = 2 * rows * model.text_width * 2 * inner
    attention = 4 * rows**2 * inner
    mlp = 6 * rows * model.text_width * model.text_mlp
    return kv + rest + attention + mlp, kv


def _expert(model: Any, prefix: int, exact: bool) -> tuple[float, float]:
    """(once per chunk, per step): K,V of cross layers are the once part when they are hoisted."""
    rows = model.chunk_size
    inner = model.heads * model.head_dim
    kv = model.kv_heads * model.head_dim
    once = per_step = 0.0
    for layer in range(model.text_layers):
        if model.expert_layer_of(layer) is None:
            continue
        per_step += 2 * rows * model.expert_width * 2 * inner
        per_step += 6 * rows * model.expert_width * model.expert_mlp
        if model.is_self_layer(layer):
            own = (rows + 1) / 2 if exact else rows  # a causal kernel skips the upper triangle
            per_step += 2 * rows * model.expert_width * 2 * kv
            per_step += 4 * rows * (prefix + own) * inner
        else:
            per_step += 4 * rows * prefix * inner
            projection = 2 * prefix * kv * 2 * kv
            once += projection if exact else 0.0
            per_step += 0.0 if exact else projection
    # The time half of the first layer is a constant vector per step, and action_in_proj folds
    # into the action half.
    first = model.max_action_dim if exact else 2 * model.expert_width + model.max_action_dim
    per_step += 2 * rows * model.expert_width * (first + model.expert_width + model.max_action_dim)
    return once, per_step


def exact_flops(model: Any, cameras: int, valid_tokens: int) -> Counts:
    """{"vision", "prefix", "flow", "total"}: padded rows dropped, dead and repeated work gone."""
    prefix = cameras * image_tokens(model) + valid_tokens + 1
    full, kv_only = _text_layer(model, prefix)
    once, per_step = _expert(model, prefix, exact=True)
    counts = {
        "vision": _vision(model, cameras),
        "prefix": model.last_used_text_layer * full + kv_only + once,
        "flow": model.num_steps * per_step,
    }
    return counts | {"total": sum(counts.values())}


def reference_flops(model: Any, cameras: int, slots: int) -> Counts:
    """The same for LeRobot with `slots` language rows, padded ones included."""
    prefix = cameras * image_tokens(model) + slots + 1
    full, _ = _text_layer(model, prefix)
    _, per_step = _expert(model, prefix, exact=False)
    counts = {
        "vision": _vision(model, cameras),
        "prefix": model.text_layers * full,
        "flow": model.num_steps * per_step,
    }
    return counts | {"total": sum(counts.values())}

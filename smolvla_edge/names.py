"""LeRobot's tensor names and ours, in both directions, and the shape every tensor must have.

    model.vlm_with_expert.vlm.model.vision_model.encoder.layers.3.self_attn.out_proj.bias
    vision.layers.3.attn.o.bias

A name is a prefix, an optional layer number and a part; each piece is listed once below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from smolvla_edge.config import ModelConfig

_VLM = "model.vlm_with_expert.vlm."
_VISION = _VLM + "model.vision_model."
_TEXT = _VLM + "model.text_model."
_EXPERT = "model.vlm_with_expert.lm_expert."

# ours -> LeRobot's, tensors that exist once
_SINGLE = {
    "vision.patch.weight": _VISION + "embeddings.patch_embedding.weight",
    "vision.patch.bias": _VISION + "embeddings.patch_embedding.bias",
    "vision.position.weight": _VISION + "embeddings.position_embedding.weight",
    "vision.norm.weight": _VISION + "post_layernorm.weight",
    "vision.norm.bias": _VISION + "post_layernorm.bias",
    "connector.weight": _VLM + "model.connector.modality_projection.proj.weight",
    "text.embed.weight": _TEXT + "embed_tokens.weight",
    "text.norm.weight": _TEXT + "norm.weight",
    "text.head.weight": _VLM + "lm_head.weight",
    "expert.norm.weight": _EXPERT + "norm.weight",
    **{
        f"{ours}.{kind}": f"model.{theirs}.{kind}"
        for ours, theirs in {
            "state_in": "state_proj",
            "action_in": "action_in_proj",
            "time_in": "action_time_mlp_in",
            "time_out": "action_time_mlp_out",
            "action_out": "action_out_proj",
        }.items()
        for kind in ("weight", "bias")
    },
}

_VISION_PARTS = {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for ours, theirs in {
        "norm1": "layer_norm1",
        "attn.q": "self_attn.q_proj",
        "attn.k": "self_attn.k_proj",
        "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.out_proj",
        "norm2": "layer_norm2",
        "mlp.up": "mlp.fc1",
        "mlp.down": "mlp.fc2",
    }.items()
    for kind in ("weight", "bias")
}

_DECODER_PARTS = {
    "norm1.weight": "input_layernorm.weight",
    "attn.q.weight": "self_attn.q_proj.weight",
    "attn.k.weight": "self_attn.k_proj.weight",
    "attn.v.weight": "self_attn.v_proj.weight",
    "attn.o.weight": "self_attn.o_proj.weight",
    "norm2.weight": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}

# our prefix, LeRobot's prefix, parts
_LAYERED = (
    ("vision.layers.", _VISION + "encoder.layers.", _VISION_PARTS),
    ("text.layers.", _TEXT + "layers.", _DECODER_PARTS),
    ("expert.layers.", _EXPERT + "layers.", _DECODER_PARTS),
)

_SINGLE_BACK = {theirs: ours for ours, theirs in _SINGLE.items()}
_LAYERED_BACK = tuple(
    (theirs, ours, {there: here for here, there in parts.items()})
    for ours, theirs, parts in _LAYERED
)
_INDEXED = re.compile(r"(0|[1-9][0-9]{0,3})\.(.+)")

_TEXT_LAYER = re.compile(r"text\.layers\.([0-9]+)\.")

# Of the last VLM layer that is read, only K and V are: everything after them is dead.
_LIVE_PARTS_OF_LAST_LAYER = ("norm1.weight", "attn.k.weight", "attn.v.weight")
_ALWAYS_DEAD = ("text.norm.weight", "text.head.weight")

# Statistics that LeRobot up to 0.3.3 kept inside the model file.
_STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")


WEIGHT_DTYPES = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class TensorSpec:
    """Shape a tensor must have; a dead one never influences an action and may be absent."""

    shape: tuple[int, ...]
    dead: bool


def strip_compiled(name: str) -> str:
    """The name as it was before torch.compile wrapped a module: without any `._orig_mod`."""
    return name.replace("._orig_mod", "")


def is_statistics_name(name: str) -> bool:
    """Whether this is a normalisation buffer of the older layout rather than a weight."""
    return name.startswith(_STATISTICS)


def canonical_name(lerobot: str) -> str | None:
    """Our name of a LeRobot tensor, or None when SmolVLA has no such tensor."""
    return _translate(strip_compiled(lerobot), _SINGLE_BACK, _LAYERED_BACK)


def lerobot_name(canonical: str) -> str:
    """LeRobot's name of one of our tensors. Raises KeyError for a name that is not ours."""
    name = _translate(canonical, _SINGLE, _LAYERED)
    if name is None:
        raise KeyError(f"{canonical!r} is not a tensor name of this package")
    return name


def text_layer_count(names: Iterable[str]) -> int:
    """How many VLM layers a set of canonical names reaches up to."""
    found = (_TEXT_LAYER.match(name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def expected_tensors(
    model: ModelConfig, stored_text_layers: int | None = None
) -> dict[str, TensorSpec]:
    """Every tensor of a checkpoint of this model by our name.

    `stored_text_layers` is given for a file that holds more VLM layers than the policy keeps; the
    layers beyond are dead.
    """
    specs = {name: TensorSpec(shape, False) for name, shape in _vision_shapes(model)}
    for layer in range(max(model.text_layers, stored_text_layers or 0)):
        for part, shape in _decoder_shapes(model, model.text_width, model.text_mlp):
            live = layer < model.last_used_text_layer or (
                layer == model.last_used_text_layer and part in _LIVE_PARTS_OF_LAST_LAYER
            )
            specs[f"text.layers.{layer}.{part}"] = TensorSpec(shape, not live)
    for layer in range(model.expert_layers):
        for part, shape in _expert_shapes(model, layer):
            specs[f"expert.layers.{layer}.{part}"] = TensorSpec(shape, False)
    for name, shape in _single_shapes(model):
        specs[name] = TensorSpec(shape, name in _ALWAYS_DEAD)
    return specs


def _translate(
    name: str, single: dict[str, str], layered: tuple[tuple[str, str, dict[str, str]], ...]
) -> str | None:
    if name in single:
        return single[name]
    for source, target, parts in layered:
        if name.startswith(source):
            match = _INDEXED.fullmatch(name[len(source) :])
            part = parts.get(match[2]) if match else None
            return f"{target}{match[1]}.{part}" if match and part else None
    return None


def _single_shapes(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, expert, actions = model.text_width, model.expert_width, model.max_action_dim
    yield "connector.weight", (width, model.vision_width * model.scale_factor**2)
    yield "text.embed.weight", (model.vocab, width)
    yield "text.norm.weight", (width,)
    yield "text.head.weight", (model.vocab, width)
    yield "expert.norm.weight", (expert,)
    for name, rows, cols in (
        ("state_in", width, model.max_state_dim),
        ("action_in", expert, actions),
        ("time_in", expert, 2 * expert),
        ("time_out", expert, expert),
        ("action_out", actions, expert),
    ):
        yield f"{name}.weight", (rows, cols)
        yield f"{name}.bias", (rows,)


def _vision_shapes(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, mlp = model.vision_width, model.vision_mlp
    yield "vision.patch.weight", (width, 3, model.patch_size, model.patch_size)
    yield "vision.patch.bias", (width,)
    yield "vision.position.weight", (model.position_side**2, width)
    yield "vision.norm.weight", (width,)
    yield "vision.norm.bias", (width,)
    linears = {f"attn.{part}": (width, width) for part in "qkvo"}
    linears |= {"mlp.up": (mlp, width), "mlp.down": (width, mlp)}
    for layer in range(model.vision_layers):
        prefix = f"vision.layers.{layer}."
        for norm in ("norm1", "norm2"):
            yield f"{prefix}{norm}.weight", (width,)
            yield f"{prefix}{norm}.bias", (width,)
        for name, shape in linears.items():
            yield f"{prefix}{name}.weight", shape
            yield f"{prefix}{name}.bias", shape[:1]


def _decoder_shapes(
    model: ModelConfig, width: int, mlp: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    yield "norm1.weight", (width,)
    yield "attn.q.weight", (queries, width)
    yield "attn.k.weight", (keys, width)
    yield "attn.v.weight", (keys, width)
    yield "attn.o.weight", (width, queries)
    yield "norm2.weight", (width,)
    yield "mlp.gate.weight", (mlp, width)
    yield "mlp.up.weight", (mlp, width)
    yield "mlp.down.weight", (width, mlp)


def _expert_shapes(model: ModelConfig, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    keys = model.kv_heads * model.head_dim
    cross = not model.is_self_layer(layer * model.expert_layer_stride)
    for part, shape in _decoder_shapes(model, model.expert_width, model.expert_mlp):
        # A cross layer projects the VLM's K and V instead of its own hidden state.
        if cross and part in ("attn.k.weight", "attn.v.weight"):
            shape = (keys, keys)
        yield part, shape

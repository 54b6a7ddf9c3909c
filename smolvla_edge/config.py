"""ModelConfig: every number the engines need, flat and JSON-able.

LeRobot's policy settings (policy_config.py) and the VLM's sizes (vlm_config.py) meet here, and what
would make LeRobot itself fail is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from smolvla_edge.config_fields import (
    FLOW_KINDS,
    FLOW_MATCHING,
    MAX_FLOAT,
    MAX_LAYERS,
    MAX_SIDE,
    MAX_SIZE,
    ONE_STEP,
)
from smolvla_edge.errors import CheckpointError, InputError
from smolvla_edge.policy_config import (
    Feature,
    PolicyConfig,
    parse_policy_config,
    read_policy_config,
)
from smolvla_edge.vlm_config import KNOWN_VLMS, VlmConfig, find_vlm_config, parse_vlm_config

__all__ = [
    "KNOWN_VLMS",
    "Feature",
    "ModelConfig",
    "PolicyConfig",
    "VlmConfig",
    "build_model_config",
    "find_vlm_config",
    "parse_policy_config",
    "parse_vlm_config",
    "read_policy_config",
]

# 0 or less: no self-attention layer; -1: unknown token id.
_MAY_BE_NEGATIVE = ("self_attn_every_n", "fake_token_id", "global_token_id")
_AT_MOST = (
    ("kv_heads", "heads"),
    ("n_action_steps", "chunk_size"),
    ("state_dim", "max_state_dim"),
    ("action_dim", "max_action_dim"),
    ("patch_size", "image_size"),
    ("expert_layers", "text_layers"),
)

# In bundles too; older ones know nothing of it.
_MAY_BE_DECLARED = frozenset({"flow_kind", "exits"})

ROPE_THETA = 10000.0  # LeRobot's own rope; the VLM's configured rope_theta is never used


@dataclass(frozen=True)
class ModelConfig:
    """The model in numbers. Layer indices count VLM (text) layers unless "expert" is said.

    flow_kind: "one_step" of a checkpoint that was distilled so that one Euler step from noise gives
    the chunk.  exits: so many of the first layers of language model and expert alone give actions
    too, where the checkpoint was trained for it.
    """

    vision_width: int
    vision_mlp: int
    vision_heads: int
    vision_layers: int
    patch_size: int
    image_size: int  # the side the position table was made for
    vision_eps: float
    scale_factor: int
    text_width: int
    text_mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    text_layers: int  # kept by the policy
    vocab: int
    rms_eps: float
    expert_width: int
    expert_mlp: int
    expert_layers: int
    cross_attention: bool
    self_attn_every_n: int
    resize: tuple[int, int] | None  # width, height; None: frames go in as they are
    chunk_size: int
    n_action_steps: int
    num_steps: int
    min_period: float
    max_period: float
    max_state_dim: int
    max_action_dim: int
    state_dim: int
    action_dim: int
    add_image_special_tokens: bool
    fake_token_id: int  # -1 when unknown, which only add_image_special_tokens forbids
    global_token_id: int
    tokenizer_max_length: int
    pad_language_to: str
    max_cameras: int
    adapt_to_pi_aloha: bool
    rope_theta: float = ROPE_THETA
    flow_kind: str = FLOW_MATCHING
    exits: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_declared(self)
        _check_sizes(self)
        _check_layers(self)
        _check_images(self)
        if self.add_image_special_tokens and min(self.fake_token_id, self.global_token_id) < 0:
            raise CheckpointError(
                "add_image_special_tokens is true, but the ids of the special tokens are not "
                'known. Add "image_special_tokens": {"fake": id, "glob": id} to vlm_config.json '
                "(the ids of <fake_token_around_image> and <global-img> in the tokenizer)"
            )

    @property
    def position_side(self) -> int:
        """Side of the square position table, in patches."""
        return self.image_size // self.patch_size

    @property
    def expert_layer_stride(self) -> int:
        return self.text_layers // self.expert_layers

    @property
    def last_used_text_layer(self) -> int:
        """The last VLM layer whose K,V any expert layer reads; nothing after K,V of it is live."""
        return (self.expert_layers - 1) * self.expert_layer_stride

    def expert_layer_of(self, layer: int) -> int | None:
        """The expert layer that runs beside a VLM layer, or None."""
        stride = self.expert_layer_stride
        return layer // stride if layer % stride == 0 else None

    def is_self_layer(self, layer: int) -> bool:
        """Whether the action tokens attend to themselves (and the prefix) beside this VLM layer."""
        return _is_self(self, layer)

    def cross_expert_layers(self) -> list[int]:
        """The expert layers whose K and V projections read the VLM's keys and values."""
        stride = self.expert_layer_stride
        return [i for i in range(self.expert_layers) if not self.is_self_layer(i * stride)]

    def tokens_per_image(self, width: int, height: int) -> int:
        """Image tokens of a width x height frame as the vision tower sees it (after any resize).

        LeRobot's pixel shuffle reshapes the patches to a square, whatever the frame's shape, and
        fails when that is impossible: those sizes raise InputError.
        """
        rows, cols = height // self.patch_size, width // self.patch_size
        side = math.isqrt(rows * cols)
        if side == 0 or side * side != rows * cols or side % self.scale_factor:
            raise InputError(
                f"an image of {width}x{height} pixels gives {rows}x{cols} patches of "
                f"{self.patch_size}: expected a square number of patches whose root is a multiple "
                f"of {self.scale_factor} (the pixel shuffle). Resize the frame"
            )
        return (side // self.scale_factor) ** 2

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` gives it back. What may be declared is there if it is."""
        result = asdict(self)
        for name in _MAY_BE_DECLARED:
            if not result[name] or result[name] == FLOW_MATCHING:
                del result[name]
            elif name == "exits":
                result[name] = list(self.exits)
        result["resize"] = None if self.resize is None else list(self.resize)
        return result

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises CheckpointError on a missing, unknown or bad field."""
        names = {field.name for field in fields(cls)} - _MAY_BE_DECLARED
        if raw.keys() - _MAY_BE_DECLARED != names:
            raise CheckpointError(
                "model configuration: missing "
                f"{sorted(names - raw.keys()) or 'nothing'}, unknown "
                f"{sorted(raw.keys() - names - _MAY_BE_DECLARED) or 'nothing'}"
            )
        found = [field for field in fields(cls) if field.name in raw]
        return cls(**{field.name: _typed(raw[field.name], field) for field in found})


def build_model_config(policy: PolicyConfig, vlm: VlmConfig) -> ModelConfig:
    """ModelConfig of a policy over a VLM. Raises CheckpointError for what LeRobot cannot run."""
    kept = policy.num_vlm_layers
    text_layers = min(kept, vlm.text_layers) if kept > 0 else vlm.text_layers
    expert_width = int(vlm.text_width * policy.expert_width_multiplier)
    return ModelConfig(
        vision_width=vlm.vision_width,
        vision_mlp=vlm.vision_mlp,
        vision_heads=vlm.vision_heads,
        vision_layers=vlm.vision_layers,
        patch_size=vlm.patch_size,
        image_size=vlm.image_size,
        vision_eps=vlm.vision_eps,
        scale_factor=vlm.scale_factor,
        text_width=vlm.text_width,
        text_mlp=vlm.text_mlp,
        heads=vlm.heads,
        kv_heads=vlm.kv_heads,
        head_dim=vlm.head_dim,
        text_layers=text_layers,
        vocab=vlm.vocab,
        rms_eps=vlm.rms_eps,
        expert_width=expert_width,
        expert_mlp=_expert_mlp(expert_width),
        expert_layers=policy.num_expert_layers if policy.num_expert_layers > 0 else text_layers,
        cross_attention="cross" in policy.attention_mode,
        self_attn_every_n=policy.self_attn_every_n_layers,
        resize=policy.resize,
        chunk_size=policy.chunk_size,
        n_action_steps=policy.n_action_steps,
        num_steps=policy.num_steps,
        min_period=policy.min_period,
        max_period=policy.max_period,
        max_state_dim=policy.max_state_dim,
        max_action_dim=policy.max_action_dim,
        state_dim=policy.state_dim,
        action_dim=policy.action_dim,
        add_image_special_tokens=policy.add_image_special_tokens,
        fake_token_id=-1 if vlm.fake_token_id is None else vlm.fake_token_id,
        global_token_id=-1 if vlm.global_token_id is None else vlm.global_token_id,
        tokenizer_max_length=policy.tokenizer_max_length,
        pad_language_to=policy.pad_language_to,
        max_cameras=len(policy.cameras),
        adapt_to_pi_aloha=policy.adapt_to_pi_aloha,
        flow_kind=policy.flow_kind,
        exits=policy.exits,
    )


def _expert_mlp(width: int) -> int:
    """LeRobot's get_intermediate_size: 4 x int(2/3 width), rounded up to a multiple of 256."""
    return -(-4 * int(2 * width / 3) // 256) * 256


def _is_self(model: ModelConfig, index: int) -> bool:
    every = model.self_attn_every_n
    return not model.cross_attention or (every > 0 and index % every == 0)


def _check_declared(model: ModelConfig) -> None:
    if model.flow_kind not in FLOW_KINDS:
        raise CheckpointError(
            f"flow.kind: expected one of {', '.join(FLOW_KINDS)}, got {model.flow_kind!r:.80}"
        )
    if model.flow_kind == ONE_STEP and model.num_steps != 1:
        raise CheckpointError(
            f"num_steps: expected 1, because flow.kind is {ONE_STEP}, got {model.num_steps}"
        )
    rising = list(model.exits) == sorted(set(model.exits))
    if not rising or not all(0 < layers < model.text_layers for layers in model.exits):
        raise CheckpointError(
            f"exits: expected rising numbers of layers from 1 to {model.text_layers - 1}, got "
            f"{list(model.exits)}"
        )


def _check_sizes(model: ModelConfig) -> None:
    for field in fields(model):
        value = getattr(model, field.name)
        if field.type not in ("int", "float"):
            continue
        limit = MAX_SIZE if field.type == "int" else MAX_FLOAT
        size = abs(value) + 1 if field.name in _MAY_BE_NEGATIVE else value
        if not 0 < size <= limit:  # true for NaN
            raise CheckpointError(
                f"{field.name}: expected a positive number up to {limit:.0f}, got {value}"
            )
    for small, large in _AT_MOST:
        if getattr(model, small) > getattr(model, large):
            raise CheckpointError(
                f"{small}: expected at most {large} = {getattr(model, large)}, "
                f"got {getattr(model, small)}"
            )
    for whole, part in (("heads", "kv_heads"), ("vision_width", "vision_heads")):
        if getattr(model, whole) % getattr(model, part):
            raise CheckpointError(
                f"{whole}: expected a multiple of {part} = {getattr(model, part)}, "
                f"got {getattr(model, whole)}"
            )
    for name in ("text_layers", "vision_layers"):
        if getattr(model, name) > MAX_LAYERS:
            raise CheckpointError(
                f"{name}: expected at most {MAX_LAYERS}, got {getattr(model, name)}"
            )
    if max(model.fake_token_id, model.global_token_id) >= model.vocab:
        raise CheckpointError(
            f"image_special_tokens: expected ids below the vocabulary of {model.vocab}, got "
            f"{model.fake_token_id} and {model.global_token_id}"
        )
    for name, why in (
        ("head_dim", "rotary position pairs"),
        ("expert_width", "the time embedding is half sines, half cosines"),
    ):
        if getattr(model, name) % 2:
            raise CheckpointError(
                f"{name}: expected an even number ({why}), got {getattr(model, name)}"
            )


def _check_layers(model: ModelConfig) -> None:
    if model.text_layers % model.expert_layers:
        raise CheckpointError(
            f"num_expert_layers: {model.expert_layers} expert layers cannot be spread evenly over "
            f"{model.text_layers} VLM layers"
        )
    for layer in range(model.text_layers):
        expert = model.expert_layer_of(layer)
        if expert is None:
            if _is_self(model, layer):
                raise CheckpointError(
                    f"num_expert_layers: VLM layer {layer} is a self-attention layer without an "
                    "expert layer; LeRobot itself fails on it"
                )
        # Built by its own index, run by the VLM's: LeRobot fails where the two disagree.
        elif _is_self(model, expert) != _is_self(model, layer):
            raise CheckpointError(
                f"num_expert_layers: expert layer {expert} is built for "
                f"{'self' if _is_self(model, expert) else 'cross'}-attention but runs beside VLM "
                f"layer {layer}, which needs the other kind; LeRobot itself fails on it"
            )


def _check_images(model: ModelConfig) -> None:
    if model.resize is None:
        return
    if not 1 <= min(model.resize) <= max(model.resize) <= MAX_SIDE:
        raise CheckpointError(
            f"resize: expected sides from 1 to {MAX_SIDE} pixels, got {list(model.resize)}"
        )
    try:
        model.tokens_per_image(*model.resize)
    except InputError as cause:
        raise CheckpointError(f"resize_imgs_with_padding: {cause}") from cause


def _typed(value: Any, field: Any) -> Any:
    kind = field.type
    if kind == "float":
        if type(value) in (int, float) and abs(value) <= MAX_FLOAT:  # false for NaN
            return float(value)
    elif kind == "tuple[int, int] | None":
        if value is None:
            return None
        if (
            isinstance(value, list | tuple)
            and len(value) == 2
            and all(type(item) is int for item in value)
        ):
            return value[0], value[1]
    elif kind == "tuple[int, ...]":
        if isinstance(value, list | tuple) and all(type(item) is int for item in value):
            return tuple(value)
    elif type(value).__name__ == kind:
        return value
    raise CheckpointError(f"model configuration: {field.name}: expected {kind}, got {value!r:.80}")

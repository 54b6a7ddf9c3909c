"""What LeRobot's config.json says, of any age: unknown keys ignored, missing ones defaulted.

Settings that change the computation in a way this package does not implement, or with which LeRobot
itself fails, are refused by name instead of being ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolvla_edge.config_fields import (
    FLOW_KINDS,
    FLOW_MATCHING,
    MAX_CAMERAS,
    MAX_COUNT,
    MAX_DIM,
    MAX_LAYERS,
    MAX_SIDE,
    MAX_SIZE,
    ConfigFields,
)
from smolvla_edge.errors import CheckpointError
from smolvla_edge.rtc import SCHEDULES, RtcSettings
from smolvla_edge.statistics import Mode
from smolvla_edge.strict_json import read_json_object

STATE = "observation.state"
ACTION = "action"
EMPTY_CAMERA = "observation.images.empty_camera_"
FEATURE_KINDS = ("STATE", "VISUAL", "ENV", "ACTION", "REWARD", "LANGUAGE")
NORMALIZATION_MODES = tuple(mode.value for mode in Mode)
DEFAULT_NORMALIZATION = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
DEFAULT_VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
EMPTY_CAMERA_SHAPE = (3, 480, 640)  # what LeRobot declares for a blank camera


@dataclass(frozen=True)
class Feature:
    """One named input or output of the policy, e.g. observation.state, STATE, (6,)."""

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PolicyConfig:
    """config.json of a LeRobot SmolVLA policy, checked and completed. Features are in file order.

    Values <= 0 mean "off" for prefix_length, "as many as the VLM" for num_expert_layers, "all" for
    num_vlm_layers and "none" for self_attn_every_n_layers, as in LeRobot. flow_kind and exits are
    declared to this package alone, under "smolvla_edge": see ModelConfig.
    """

    input_features: tuple[Feature, ...]
    output_features: tuple[Feature, ...]
    normalization_mapping: Mapping[str, str]
    chunk_size: int
    n_action_steps: int
    num_steps: int
    max_state_dim: int
    max_action_dim: int
    resize: tuple[int, int] | None  # width, height
    empty_cameras: int
    adapt_to_pi_aloha: bool
    tokenizer_max_length: int
    pad_language_to: str
    vlm_model_name: str
    add_image_special_tokens: bool
    attention_mode: str
    prefix_length: int
    num_expert_layers: int
    num_vlm_layers: int
    self_attn_every_n_layers: int
    expert_width_multiplier: float
    min_period: float
    max_period: float
    rtc: RtcSettings
    flow_kind: str = FLOW_MATCHING
    exits: tuple[int, ...] = ()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the visual features in config order, blank cameras included."""
        return tuple(item.name for item in self.input_features if item.kind == "VISUAL")

    @property
    def state_dim(self) -> int:
        return _vector_size(self.input_features, STATE, self.max_state_dim, "max_state_dim")

    @property
    def action_dim(self) -> int:
        return _vector_size(self.output_features, ACTION, self.max_action_dim, "max_action_dim")


def read_policy_config(path: Path) -> PolicyConfig:
    """The checked contents of a config.json. Raises CheckpointError."""
    return parse_policy_config(read_json_object(path), str(path))


def parse_policy_config(raw: Mapping[str, Any], where: str = "config.json") -> PolicyConfig:
    """PolicyConfig from the parsed JSON. Raises CheckpointError naming `where` and the field."""
    fields = ConfigFields(raw, where)
    _refuse_unsupported(fields)
    empty_cameras = fields.integer("empty_cameras", 0, 0, MAX_CAMERAS)
    chunk_size = fields.integer("chunk_size", 50, 1, MAX_COUNT)
    policy = PolicyConfig(
        input_features=_with_empty_cameras(_features(fields, "input_features"), empty_cameras),
        output_features=_features(fields, "output_features"),
        normalization_mapping=_normalization(fields),
        chunk_size=chunk_size,
        n_action_steps=fields.integer("n_action_steps", min(50, chunk_size), 1, chunk_size),
        num_steps=fields.integer("num_steps", 10, 1, MAX_COUNT),
        max_state_dim=fields.integer("max_state_dim", 32, 1, MAX_DIM),
        max_action_dim=fields.integer("max_action_dim", 32, 1, MAX_DIM),
        resize=_resize(fields),
        empty_cameras=empty_cameras,
        adapt_to_pi_aloha=fields.boolean("adapt_to_pi_aloha", False),
        tokenizer_max_length=fields.integer("tokenizer_max_length", 48, 1, MAX_COUNT),
        pad_language_to=fields.text("pad_language_to", "longest", ("longest", "max_length")),
        vlm_model_name=fields.text("vlm_model_name", DEFAULT_VLM),
        add_image_special_tokens=fields.boolean("add_image_special_tokens", False),
        # LeRobot asks only whether the word "cross" is in it.
        attention_mode=fields.text("attention_mode", "cross_attn"),
        prefix_length=fields.integer("prefix_length", -1, -MAX_SIZE),
        num_expert_layers=fields.integer("num_expert_layers", -1, -MAX_LAYERS, MAX_LAYERS),
        num_vlm_layers=fields.integer("num_vlm_layers", 16, -MAX_LAYERS, MAX_LAYERS),
        self_attn_every_n_layers=fields.integer(
            "self_attn_every_n_layers", 2, -MAX_LAYERS, MAX_LAYERS
        ),
        expert_width_multiplier=fields.positive_float("expert_width_multiplier", 0.75),
        min_period=fields.positive_float("min_period", 4e-3),
        max_period=fields.positive_float("max_period", 4.0),
        rtc=_rtc(fields),
        flow_kind=_flow_kind(fields),
        exits=_exits(fields),
    )
    _check_features(policy, where)
    return policy


def _refuse_unsupported(fields: ConfigFields) -> None:
    kind = fields.raw.get("type")
    if kind != "smolvla":
        raise CheckpointError(
            f"{fields.where}: expected a policy of type 'smolvla', got {kind!r:.80}. "
            "Only SmolVLA policies saved by LeRobot can be loaded"
        )
    if fields.boolean("use_peft", False):
        raise CheckpointError(
            f"{fields.where}: use_peft is true: this is a PEFT adapter, not a whole policy. "
            "Merge it first (peft's merge_and_unload, then save_pretrained)"
        )
    fields.must_be("n_obs_steps", 1, "SmolVLA looks at one observation")
    fields.must_be("use_cache", True, "LeRobot's own inference fails without the cache")
    fields.must_be(
        "use_delta_joint_actions_aloha", False, "relative actions are not implemented in LeRobot"
    )


def _features(fields: ConfigFields, key: str) -> tuple[Feature, ...]:
    features = []
    for name, raw in fields.mapping(key).items():
        if not isinstance(raw, Mapping):
            fields.refuse(key, f"an object with type and shape for {name!r}")
        one = ConfigFields(raw, f"{fields.where}: {key}: {name}")
        shape = raw.get("shape")
        if not isinstance(shape, list) or not all(
            type(size) is int and 0 < size <= MAX_SIZE for size in shape
        ):
            one.refuse("shape", "a list of positive integers")
        features.append(Feature(name, one.text("type", "", FEATURE_KINDS), tuple(shape)))
    return tuple(features)


def _with_empty_cameras(features: tuple[Feature, ...], count: int) -> tuple[Feature, ...]:
    # LeRobot adds them when it builds the policy; files saved afterwards already hold them.
    present = {item.name for item in features}
    names = [f"{EMPTY_CAMERA}{i}" for i in range(count)]
    return features + tuple(
        Feature(name, "VISUAL", EMPTY_CAMERA_SHAPE) for name in names if name not in present
    )


def _normalization(fields: ConfigFields) -> dict[str, str]:
    mapping = fields.mapping("normalization_mapping", DEFAULT_NORMALIZATION)
    modes = ConfigFields(mapping, f"{fields.where}: normalization_mapping")
    return {kind: modes.text(kind, "", NORMALIZATION_MODES) for kind in mapping}


def _resize(fields: ConfigFields) -> tuple[int, int] | None:
    size = fields.raw.get("resize_imgs_with_padding", [512, 512])
    if size is None:
        return None
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(type(side) is int and 0 < side <= MAX_SIDE for side in size)
    ):
        fields.refuse("resize_imgs_with_padding", "null or [width, height]")
    return size[0], size[1]


def _rtc(fields: ConfigFields) -> RtcSettings:
    if fields.raw.get("rtc_config") is None:
        return RtcSettings()
    rtc = ConfigFields(fields.mapping("rtc_config"), f"{fields.where}: rtc_config")
    enabled = rtc.boolean("enabled", False)
    if enabled:
        rtc.must_be("mode", "guided", "the only kind of real-time chunking implemented")
    return RtcSettings(
        enabled=enabled,
        schedule=rtc.text("prefix_attention_schedule", "LINEAR", SCHEDULES),
        max_guidance_weight=rtc.positive_float("max_guidance_weight", 10.0),
        execution_horizon=rtc.integer("execution_horizon", 10, 1),
    )


def _declared(fields: ConfigFields, key: str, known: tuple[str, ...]) -> ConfigFields:
    """An object of ours: what it says and we do not know may not be ignored."""
    own = ConfigFields(fields.mapping(key, {}), f"{fields.where}: {key}")
    unknown = sorted(str(name) for name in own.raw.keys() - set(known))
    if unknown:
        raise CheckpointError(
            f"{own.where}: expected {' and '.join(known)} at most, got {', '.join(unknown)}. A "
            "newer version of this package may know it"
        )
    return own


def _flow_kind(fields: ConfigFields) -> str:
    own = _declared(fields, "smolvla_edge", ("flow", "exits"))
    return _declared(own, "flow", ("kind",)).text("kind", FLOW_MATCHING, FLOW_KINDS)


def _exits(fields: ConfigFields) -> tuple[int, ...]:
    own = _declared(fields, "smolvla_edge", ("flow", "exits"))
    exits = own.raw.get("exits", [])
    if not isinstance(exits, list) or not all(
        type(layers) is int and 0 < layers <= MAX_LAYERS for layers in exits
    ):
        own.refuse("exits", "a list of numbers of layers")
    return tuple(exits)


def _vector_size(features: tuple[Feature, ...], name: str, limit: int, limit_name: str) -> int:
    found = next((item for item in features if item.name == name), None)
    if found is None:
        held = ", ".join(item.name for item in features) or "none"
        raise CheckpointError(f"config.json: expected a feature named {name}, got {held}")
    if len(found.shape) != 1 or found.shape[0] > limit:
        raise CheckpointError(
            f"config.json: {name}: expected a vector of at most {limit} ({limit_name}), "
            f"got shape {list(found.shape)}"
        )
    return found.shape[0]


def _check_features(policy: PolicyConfig, where: str) -> None:
    dims = {"state": policy.state_dim, "action": policy.action_dim}  # these raise
    if not 1 <= len(policy.cameras) <= MAX_CAMERAS:
        raise CheckpointError(
            f"{where}: expected at least one VISUAL input feature and at most {MAX_CAMERAS}, got "
            f"{len(policy.cameras) or 'none'}"
        )
    for item in policy.input_features:
        if item.kind == "VISUAL" and (len(item.shape) != 3 or item.shape[0] != 3):
            raise CheckpointError(
                f"{where}: {item.name}: expected the shape of an RGB image [3, height, width], "
                f"got {list(item.shape)}"
            )
    for name, dim in dims.items():
        if policy.adapt_to_pi_aloha and dim < 14:
            raise CheckpointError(
                f"{where}: adapt_to_pi_aloha converts joints up to number 13: expected at least "
                f"14 {name} dimensions, got {dim}"
            )

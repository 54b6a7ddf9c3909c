"""Build LeRobot's SmolVLAPolicy from a checkpoint folder, in float32 or as shipped (bfloat16)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import stubs

stubs.install()

import torch  # noqa: E402  (the stand-ins must exist before LeRobot is imported)
from lerobot.configs.types import (  # noqa: E402
    FeatureType,
    NormalizationMode,
    PolicyFeature,
    RTCAttentionSchedule,
)
from lerobot.policies.rtc.configuration_rtc import RTCConfig  # noqa: E402
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig  # noqa: E402
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers.modeling_utils import no_init_weights  # noqa: E402

stubs.fix_position_ids()

PRECISIONS = ("float32", "bfloat16")


def make_config(raw: dict[str, Any]) -> SmolVLAConfig:
    """SmolVLAConfig from a `config.json` of any LeRobot version (newer keys are dropped)."""
    known = {field.name for field in dataclasses.fields(SmolVLAConfig)}
    settings = {key: value for key, value in raw.items() if key in known}
    for name in ("input_features", "output_features"):
        settings[name] = {
            key: PolicyFeature(FeatureType(spec["type"]), tuple(spec["shape"]))
            for key, spec in raw.get(name, {}).items()
        }
    mapping = settings.get("normalization_mapping")
    if mapping:
        settings["normalization_mapping"] = {k: NormalizationMode(v) for k, v in mapping.items()}
    if settings.get("resize_imgs_with_padding") is not None:
        settings["resize_imgs_with_padding"] = tuple(settings["resize_imgs_with_padding"])
    rtc = settings.get("rtc_config")
    if rtc is not None:
        names = {field.name for field in dataclasses.fields(RTCConfig)}
        rtc = {key: value for key, value in rtc.items() if key in names}
        if "prefix_attention_schedule" in rtc:
            rtc["prefix_attention_schedule"] = RTCAttentionSchedule(
                rtc["prefix_attention_schedule"]
            )
        settings["rtc_config"] = RTCConfig(**rtc)
    settings["device"] = "cpu"
    return SmolVLAConfig(**settings)


def make_policy(raw: dict[str, Any], sizes: dict[str, Any], precision: str) -> SmolVLAPolicy:
    """A policy with uninitialised weights, in the dtypes that `precision` runs in."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {PRECISIONS}, got {precision!r}")
    stubs.use_vlm_config(sizes)
    # load_vlm_weights=True is how smolvla_base and its fine-tunes are built: bfloat16 but for the
    # heads and the cross layers' K and V. float32 widens every weight.
    config = make_config({**raw, "load_vlm_weights": precision == "bfloat16"})
    with no_init_weights():
        policy = SmolVLAPolicy(config)
    return policy.float() if precision == "float32" else policy


def load_policy(folder: Path, precision: str, device: str = "cpu") -> SmolVLAPolicy:
    """The policy of a checkpoint folder; every tensor of the file must be used and present."""
    raw = json.loads((folder / "config.json").read_text())
    local = folder / "vlm_config.json"
    sizes = json.loads(local.read_text()) if local.exists() else stubs.SMOLVLM2_500M
    policy = make_policy(raw, sizes, precision)
    weights = load_file(str(folder / "model.safetensors"))
    policy.load_state_dict(weights, strict=True)
    policy.config.device = device
    policy.to(device).eval()
    for parameter in policy.parameters():
        parameter.requires_grad_(False)
    return policy


def use_cameras(policy: SmolVLAPolicy, count: int) -> list[str]:
    """Give the policy exactly `count` cameras, whatever its checkpoint names; -> their keys."""
    features = policy.config.input_features
    for key in [k for k, spec in features.items() if spec.type == FeatureType.VISUAL]:
        del features[key]
    names = [f"observation.images.camera{i + 1}" for i in range(count)]
    features.update({name: PolicyFeature(FeatureType.VISUAL, (3, 512, 512)) for name in names})
    return names


def versions() -> dict[str, str]:
    import importlib.metadata as metadata

    names = ("lerobot", "torch", "transformers", "numpy")
    return {name: metadata.version(name) for name in names}


__all__ = [
    "PRECISIONS",
    "load_policy",
    "make_config",
    "make_policy",
    "torch",
    "use_cameras",
    "versions",
]

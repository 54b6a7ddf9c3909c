"""The cases of tests/data/golden_extra: settings beside those of the main golden files."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

# The "mini" sizes of the main golden index: an 8-wide head, 4 text layers, 2 vision layers.
MINI: dict[str, Any] = {
    "text_config": {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_hidden_layers": 4,
        "vocab_size": 128,
        "rms_norm_eps": 1e-05,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "image_size": 64,
        "patch_size": 16,
        "num_channels": 3,
        "layer_norm_eps": 1e-06,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "scale_factor": 2,
    "image_special_tokens": {"fake": 124, "glob": 120},
}
# The pipeline's stand-in tokenizer has 256 ids.
MINI256 = copy.deepcopy(MINI)
MINI256["text_config"]["vocab_size"] = 256
MINI256["image_special_tokens"] = {"fake": 249, "glob": 240}

# 8-pixel patches: an 8x8 position table with small frames.
MINI8 = copy.deepcopy(MINI)
MINI8["vision_config"]["patch_size"] = 8

MEAN_STD = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}


@dataclass(frozen=True)
class Case:
    name: str
    about: str
    group: str = "mini"  # cases with the same tensors share a weights manifest
    vlm: dict[str, Any] = field(default_factory=lambda: MINI)
    overrides: dict[str, Any] = field(default_factory=dict)
    image_sizes: tuple[tuple[int, int], ...] = ((24, 40),)  # (height, width) of each frame
    frames: tuple[int, ...] = ()  # an extra history axis of images and state
    state_dim: int = 6
    action_dim: int = 5
    max_state_dim: int = 10
    max_action_dim: int = 8
    language: int = 5
    task: str | None = None  # a task makes it a pipeline case: uint8 frames to robot units
    rtc: dict[str, Any] | None = None
    calls: int = 0  # number of select_action calls instead of one predict_action_chunk
    mean: float = 0.0  # centre of the state's statistics and of the raw state

    @property
    def image_keys(self) -> list[str]:
        return [f"observation.images.camera{i + 1}" for i in range(len(self.image_sizes))]

    def config(self) -> dict[str, Any]:
        """The case's config.json."""
        features = {"observation.state": {"type": "STATE", "shape": [self.state_dim]}}
        for key, (height, width) in zip(self.image_keys, self.image_sizes, strict=True):
            features[key] = {"type": "VISUAL", "shape": [3, height, width]}
        settings = {
            "type": "smolvla",
            "n_obs_steps": 1,
            "input_features": features,
            "output_features": {"action": {"type": "ACTION", "shape": [self.action_dim]}},
            "device": "cpu",
            "chunk_size": 8,
            "n_action_steps": 8,
            "normalization_mapping": MEAN_STD,
            "max_state_dim": self.max_state_dim,
            "max_action_dim": self.max_action_dim,
            "resize_imgs_with_padding": [64, 64],
            "empty_cameras": 0,
            "adapt_to_pi_aloha": False,
            "use_delta_joint_actions_aloha": False,
            "tokenizer_max_length": 12,
            "num_steps": 4,
            "use_cache": True,
            "vlm_model_name": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
            "load_vlm_weights": True,
            "add_image_special_tokens": False,
            "attention_mode": "cross_attn",
            "prefix_length": -1,
            "pad_language_to": "longest",
            "num_expert_layers": -1,
            "num_vlm_layers": 4,
            "self_attn_every_n_layers": 2,
            "expert_width_multiplier": 0.75,
            "min_period": 0.004,
            "max_period": 4.0,
            "rtc_config": None,
        }
        return {**settings, **self.overrides}


def rtc_settings(schedule: str, horizon: int = 6) -> dict[str, Any]:
    return {
        "rtc_config": {
            "enabled": True,
            "prefix_attention_schedule": schedule,
            "max_guidance_weight": 5.0,
            "execution_horizon": horizon,
        }
    }


def norm(mode: str, visual: str = "IDENTITY") -> dict[str, Any]:
    return {"normalization_mapping": {"VISUAL": visual, "STATE": mode, "ACTION": mode}}


def pipeline(name: str, about: str, **changes: Any) -> Case:
    settings: dict[str, Any] = {
        "group": "mini256",
        "vlm": MINI256,
        "image_sizes": ((48, 64),),
        "task": "push cube",
    }
    return Case(name=name, about=about, **(settings | changes))


ALOHA = {"state_dim": 14, "action_dim": 14, "max_state_dim": 16, "max_action_dim": 16}

CASES = (
    pipeline(
        "aloha",
        "adapt_to_pi_aloha with 14 joints: normalise, decode, model, encode, un-normalise",
        group="aloha",
        overrides={"adapt_to_pi_aloha": True},
        mean=0.5,
        **ALOHA,
    ),
    pipeline(
        "identity", "no normalisation: raw state in, model units out", overrides=norm("IDENTITY")
    ),
    pipeline("min_max", "MIN_MAX of state and action", overrides=norm("MIN_MAX")),
    pipeline("quantiles", "QUANTILES (q01, q99) of state and action", overrides=norm("QUANTILES")),
    pipeline(
        "quantile10", "QUANTILE10 (q10, q90) of state and action", overrides=norm("QUANTILE10")
    ),
    pipeline(
        "visual_mean_std",
        "VISUAL: MEAN_STD, so that the normaliser also changes the image; in.image is after it",
        overrides=norm("MEAN_STD", visual="MEAN_STD"),
        image_sizes=((24, 40),),
    ),
    pipeline(
        "two_line_task",
        "a task that already ends in a newline gets no second one",
        task="push\ncube\n",
    ),
    Case(
        "expert2_every4",
        "2 expert layers for 4 VLM layers, self-attention every 4",
        group="expert2",
        overrides={"num_expert_layers": 2, "self_attn_every_n_layers": 4},
    ),
    Case(
        "expert2_all_cross",
        "2 expert layers for 4 VLM layers, all cross-attention",
        group="expert2_cross",
        overrides={"num_expert_layers": 2, "self_attn_every_n_layers": -1},
    ),
    Case(
        "expert1_every4",
        "1 expert layer for 4 VLM layers, at VLM layer 0 (self-attention)",
        group="expert1",
        overrides={"num_expert_layers": 1, "self_attn_every_n_layers": 4},
    ),
    Case(
        "no_resize",
        "resize null: 32x32 images, 2x2 patches on a 4x4 position table",
        overrides={"resize_imgs_with_padding": None},
        image_sizes=((32, 32), (32, 32)),
    ),
    Case(
        "no_resize_6_of_8",
        "resize null: 48x48 images, 6x6 patches on an 8x8 position table",
        group="mini8",
        vlm=MINI8,
        overrides={"resize_imgs_with_padding": None},
        image_sizes=((48, 48),),
    ),
    Case(
        "no_resize_mixed",
        "resize null: a 16x16 and a 32x32 camera: 1 and 4 image tokens",
        group="mini8",
        vlm=MINI8,
        overrides={"resize_imgs_with_padding": None},
        image_sizes=((16, 16), (32, 32)),
    ),
    Case(
        "no_resize_ragged",
        "resize null: 40x38 image, the conv drops what is over 32x32",
        overrides={"resize_imgs_with_padding": None},
        image_sizes=((40, 38),),
    ),
    Case(
        "resize_32",
        "square resize smaller than the vision tower's own image",
        overrides={"resize_imgs_with_padding": [32, 32]},
    ),
    Case(
        "resize_128x32",
        "width 128, height 32: 2 rows of 8 patches, which the pixel shuffle reads as 4x4",
        overrides={"resize_imgs_with_padding": [128, 32]},
    ),
    Case(
        "rtc_all_dims",
        "the previous chunk has every padded dimension and the full length",
        overrides=rtc_settings("EXP"),
        rtc={"inference_delay": 1, "execution_horizon": 8, "prev_shape": [8, 8]},
    ),
    Case(
        "rtc_delay_over_horizon",
        "delay 7 over horizon 3: three ones, then zeros",
        overrides=rtc_settings("LINEAR"),
        rtc={"inference_delay": 7, "execution_horizon": 3, "prev_shape": [6, 5]},
    ),
    Case(
        "rtc_default_horizon",
        "execution_horizon None: the configuration's 4",
        overrides=rtc_settings("LINEAR", horizon=4),
        rtc={"inference_delay": 1, "execution_horizon": None, "prev_shape": [7, 5]},
    ),
    Case(
        "rtc_short_chunk",
        "a previous chunk of 2 steps cuts the horizon to 2",
        overrides=rtc_settings("ONES"),
        rtc={"inference_delay": 0, "execution_horizon": 6, "prev_shape": [2, 5]},
    ),
    Case("history", "5-D images and 3-D state: the last step is used", frames=(2,)),
    Case(
        "select_action",
        "7 select_action calls with a queue of 3 actions, same noise",
        overrides={"n_action_steps": 3},
        calls=7,
    ),
    Case("one_step", "a single flow step", overrides={"num_steps": 1}),
)

FAILURES = (
    Case(
        "expert_layers_not_a_divisor",
        "3 expert layers for 4 VLM layers",
        overrides={"num_expert_layers": 3},
    ),
    Case(
        "more_expert_layers", "8 expert layers for 4 VLM layers", overrides={"num_expert_layers": 8}
    ),
    Case(
        "expert2_every2",
        "layer 2 is self-attention by VLM index, cross by expert index",
        overrides={"num_expert_layers": 2},
    ),
    Case(
        "expert2_every3",
        "VLM layer 3 is self-attention and has no expert layer",
        overrides={"num_expert_layers": 2, "self_attn_every_n_layers": 3},
    ),
    Case(
        "aloha_six_joints", "adapt_to_pi_aloha with 6 joints", overrides={"adapt_to_pi_aloha": True}
    ),
    Case(
        "resize_64x32",
        "8 patches: not a square count",
        overrides={"resize_imgs_with_padding": [64, 32]},
    ),
    Case(
        "resize_48",
        "3x3 patches do not divide by the pixel shuffle's 2",
        overrides={"resize_imgs_with_padding": [48, 48]},
    ),
    Case("state_too_wide", "12 state dimensions, max_state_dim 10", state_dim=12),
    Case(
        "rtc_prev_too_long",
        "previous chunk longer than the chunk, few dimensions",
        overrides=rtc_settings("LINEAR"),
        rtc={"inference_delay": 1, "execution_horizon": 6, "prev_shape": [9, 5]},
    ),
    Case(
        "rtc_prev_too_long_all_dims",
        "previous chunk longer than the chunk, all dimensions",
        overrides=rtc_settings("LINEAR"),
        rtc={"inference_delay": 1, "execution_horizon": 6, "prev_shape": [9, 8]},
    ),
    Case(
        "rtc_prev_too_wide",
        "previous chunk with more dimensions than the model",
        overrides=rtc_settings("LINEAR"),
        rtc={"inference_delay": 1, "execution_horizon": 6, "prev_shape": [6, 9]},
    ),
    Case(
        "rtc_no_delay",
        "inference_delay None with a previous chunk",
        overrides=rtc_settings("LINEAR"),
        rtc={"inference_delay": None, "execution_horizon": 6, "prev_shape": [6, 5]},
    ),
    Case(
        "rtc_negative_delay",
        "inference_delay -1",
        overrides=rtc_settings("LINEAR"),
        rtc={"inference_delay": -1, "execution_horizon": 6, "prev_shape": [6, 5]},
    ),
    Case(
        "rtc_empty_prev",
        "a previous chunk of length 0",
        overrides=rtc_settings("LINEAR"),
        rtc={"inference_delay": 0, "execution_horizon": 6, "prev_shape": [0, 5]},
    ),
    Case("use_cache_false", "use_cache false", overrides={"use_cache": False}),
    Case("action_too_wide", "12 action dimensions, max_action_dim 8", action_dim=12),
)

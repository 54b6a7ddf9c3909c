"""The small files of a synthetic checkpoint: config.json, processors with statistics, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.config import ModelConfig
from smolvla_edge.counter_values import counter_values
from smolvla_edge.errors import CheckpointError
from smolvla_edge.policy_config import ACTION, DEFAULT_NORMALIZATION, DEFAULT_VLM, STATE
from smolvla_edge.safetensors_file import SafetensorsWriter, TensorLayout

# <|im_end|> is SmolVLM2's padding token; the ids are the real tokenizer's.
_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TOKENIZER_FOLDER = "tokenizer"

# Distance from the mean, in standard deviations, that the made-up statistics use.
_QUANTILES = {"min": -3.0, "q01": -2.326, "q10": -1.282, "q50": 0.0, "q90": 1.282, "q99": 2.326,
              "max": 3.0}  # fmt: skip


def lerobot_config(
    cameras: Sequence[str], state_dim: int, action_dim: int, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """A config.json as LeRobot saves it: its keys, in its order, with its defaults."""
    config: dict[str, Any] = {
        "type": "smolvla",
        "n_obs_steps": 1,
        "input_features": {
            STATE: {"type": "STATE", "shape": [state_dim]},
            **{name: {"type": "VISUAL", "shape": [3, 480, 640]} for name in cameras},
        },
        "output_features": {ACTION: {"type": "ACTION", "shape": [action_dim]}},
        "device": "cpu",
        "use_amp": False,
        "use_peft": False,
        "push_to_hub": False,
        "repo_id": None,
        "private": None,
        "tags": None,
        "license": None,
        "pretrained_path": None,
        "pretrained_revision": None,
        "chunk_size": 50,
        "n_action_steps": 50,
        "normalization_mapping": dict(DEFAULT_NORMALIZATION),
        "max_state_dim": 32,
        "max_action_dim": 32,
        "resize_imgs_with_padding": [512, 512],
        "empty_cameras": 0,
        "adapt_to_pi_aloha": False,
        "use_delta_joint_actions_aloha": False,
        "tokenizer_max_length": 48,
        "num_steps": 10,
        "use_cache": True,
        "freeze_vision_encoder": True,
        "train_expert_only": True,
        "train_state_proj": True,
        "optimizer_lr": 1e-4,
        "optimizer_betas": [0.9, 0.95],
        "optimizer_eps": 1e-8,
        "optimizer_weight_decay": 1e-10,
        "optimizer_grad_clip_norm": 10,
        "scheduler_warmup_steps": 1000,
        "scheduler_decay_steps": 30000,
        "scheduler_decay_lr": 2.5e-6,
        "vlm_model_name": DEFAULT_VLM,
        "load_vlm_weights": True,
        "add_image_special_tokens": False,
        "attention_mode": "cross_attn",
        "prefix_length": -1,
        "pad_language_to": "longest",
        "num_expert_layers": -1,
        "num_vlm_layers": 16,
        "self_attn_every_n_layers": 2,
        "expert_width_multiplier": 0.75,
        "min_period": 0.004,
        "max_period": 4.0,
        "rtc_config": None,
        "compile_model": False,
        "compile_mode": "max-autotune",
    }
    unknown = sorted(overrides.keys() - config.keys())
    if unknown:
        raise CheckpointError(f"overrides: expected keys of config.json, got {', '.join(unknown)}")
    return config | dict(overrides)


def write_processors(
    folder: Path,
    config: Mapping[str, Any],
    stats: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """LeRobot's pre- and postprocessor files; `stats` by "FEATURE.STAT", or made up, plausibly."""
    inputs, outputs = config["input_features"], config["output_features"]
    modes = config["normalization_mapping"]
    tokenizer = {
        "max_length": config["tokenizer_max_length"],
        "task_key": "task",
        "padding_side": "right",
        "padding": config["pad_language_to"],
        "truncation": True,
        "tokenizer_name": _TOKENIZER_FOLDER,
    }
    to_device = {"device": "cpu", "float_dtype": None}
    normalizer = {"eps": 1e-8, "features": {**inputs, **outputs}, "norm_map": modes}
    unnormalizer = {"eps": 1e-8, "features": outputs, "norm_map": modes}
    if stats is None:
        stats = _statistics({**inputs, **outputs})
    _write_pipeline(
        folder,
        "policy_preprocessor",
        [
            {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
            {"registry_name": "to_batch_processor", "config": {}},
            {"registry_name": "smolvla_new_line_processor", "config": {}},
            {
                "registry_name": "tokenizer_processor",
                "config": tokenizer,
                "artifacts": {"tokenizer_name": _TOKENIZER_FOLDER},
            },
            {"registry_name": "device_processor", "config": to_device},
            {"registry_name": "normalizer_processor", "config": normalizer},
        ],
        stats,
    )
    _write_pipeline(
        folder,
        "policy_postprocessor",
        [
            {"registry_name": "unnormalizer_processor", "config": unnormalizer},
            {"registry_name": "device_processor", "config": to_device},
        ],
        stats,
    )


def write_tokenizer(folder: Path, model: ModelConfig) -> None:
    """A byte-level stand-in tokenizer: every text encodes, at one token a byte."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate((*_SPECIAL_TOKENS, *alphabet))}
    if len(vocab) > model.vocab:
        raise CheckpointError(
            f"vocab: a byte-level tokenizer needs {len(vocab)} tokens, got {model.vocab}"
        )
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL_TOKENS])
    target = folder / _TOKENIZER_FOLDER
    target.mkdir()
    # Not tokenizer.save(), which takes no path that is not UTF-8.
    (target / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def _write_pipeline(
    folder: Path, name: str, steps: list[dict[str, Any]], stats: Mapping[str, NDArray[np.float32]]
) -> None:
    for index, step in enumerate(steps):
        if "normalizer" in step["registry_name"]:
            step["state_file"] = f"{name}_step_{index}_{step['registry_name']}.safetensors"
            layouts = [TensorLayout(key, "F32", values.shape) for key, values in stats.items()]
            with SafetensorsWriter(folder / step["state_file"], layouts) as writer:
                for layout in writer.order:
                    writer.write(layout.name, stats[layout.name])
    text = json.dumps({"name": name, "steps": steps}, indent=2)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _statistics(features: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Joint angles of a small arm in degrees: means within +-30, deviations of 10 to 30."""
    stats: dict[str, NDArray[np.float32]] = {}
    for name, feature in features.items():
        if feature["type"] not in ("STATE", "ACTION"):
            continue
        (dim,) = feature["shape"]
        mean = counter_values(f"{name}.mean", 1, 0.0, 30.0, dim)
        std = counter_values(f"{name}.std", 1, 20.0, 10.0, dim)
        stats |= {f"{name}.mean": mean, f"{name}.std": std}
        stats |= {
            f"{name}.{stat}": mean + np.float32(distance) * std
            for stat, distance in _QUANTILES.items()
        }
        stats[f"{name}.count"] = np.array([10000.0], np.float32)
    return stats

"""Sizes of the vision-language model, which LeRobot's config.json does not hold.

They come from `vlm_config.json` in the checkpoint folder (the config.json of the VLM on the Hub, or
its text_config / vision_config / scale_factor), else from the table of known VLMs. Tensor shapes
confirm widths and layer counts later; head sizes and norm epsilons cannot be read off a checkpoint,
so an unknown VLM is refused rather than guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolvla_edge.config_fields import MAX_LAYERS, MAX_SIDE, ConfigFields
from smolvla_edge.errors import CheckpointError
from smolvla_edge.strict_json import read_json_object

VLM_CONFIG_FILE = "vlm_config.json"


@dataclass(frozen=True)
class VlmConfig:
    """A SmolVLM: SigLIP-like vision tower, pixel shuffle and linear connector, Llama-like text."""

    text_width: int
    text_mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    text_layers: int  # all of them; a policy usually keeps the first half
    vocab: int
    rms_eps: float
    vision_width: int
    vision_mlp: int
    vision_heads: int
    vision_layers: int
    image_size: int
    patch_size: int
    vision_eps: float
    scale_factor: int
    fake_token_id: int | None  # <fake_token_around_image>
    global_token_id: int | None  # <global-img>


KNOWN_VLMS = {
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": VlmConfig(
        text_width=960, text_mlp=2560, heads=15, kv_heads=5, head_dim=64, text_layers=32,
        vocab=49280, rms_eps=1e-5,
        vision_width=768, vision_mlp=3072, vision_heads=12, vision_layers=12,
        image_size=512, patch_size=16, vision_eps=1e-6, scale_factor=4,
        fake_token_id=49189, global_token_id=49152,
    ),
}  # fmt: skip


def find_vlm_config(folder: Path, vlm_model_name: str) -> tuple[VlmConfig, str]:
    """The VLM's sizes and where they come from ("vlm_config.json" or "known: NAME")."""
    path = folder / VLM_CONFIG_FILE
    if path.is_file():
        return parse_vlm_config(read_json_object(path), str(path)), VLM_CONFIG_FILE
    if vlm_model_name in KNOWN_VLMS:
        return KNOWN_VLMS[vlm_model_name], f"known: {vlm_model_name}"
    raise CheckpointError(
        f"the sizes of the VLM {vlm_model_name!r:.200} are not known; known are "
        f"{', '.join(KNOWN_VLMS)}. Copy that VLM's config.json into {folder} as {VLM_CONFIG_FILE}"
    )


def parse_vlm_config(raw: Mapping[str, Any], where: str = VLM_CONFIG_FILE) -> VlmConfig:
    """VlmConfig from the JSON of transformers' SmolVLMConfig. Raises CheckpointError.

    transformers leaves out what equals its class defaults, so an absent key has that default here:
    the numbers below are those of SmolVLMConfig, SmolVLMVisionConfig and LlamaConfig. Sizes that
    every file states are required.
    """
    top = ConfigFields(raw, where)
    text = ConfigFields(top.mapping("text_config"), f"{where}: text_config")
    vision = ConfigFields(top.mapping("vision_config"), f"{where}: vision_config")
    text.must_be("hidden_act", "silu", "the only text activation implemented")
    text.must_be("attention_bias", False, "text projections have no bias")
    text.must_be("mlp_bias", False, "text projections have no bias")
    vision.must_be("hidden_act", "gelu_pytorch_tanh", "the only vision activation implemented")
    vision.must_be("num_channels", 3, "frames are RGB")
    text_width = text.integer("hidden_size", None, 1)
    heads = text.integer("num_attention_heads", 32, 1)
    return VlmConfig(
        text_width=text_width,
        text_mlp=text.integer("intermediate_size", 11008, 1),
        heads=heads,
        kv_heads=_given(text, "num_key_value_heads", heads),
        head_dim=_given(text, "head_dim", text_width // heads),
        text_layers=text.integer("num_hidden_layers", 32, 1, MAX_LAYERS),
        vocab=text.integer("vocab_size", 32000, 1),
        rms_eps=text.positive_float("rms_norm_eps", 1e-6),
        vision_width=vision.integer("hidden_size", 1152, 1),
        vision_mlp=vision.integer("intermediate_size", 3072, 1),
        vision_heads=vision.integer("num_attention_heads", 16, 1),
        vision_layers=vision.integer("num_hidden_layers", 12, 1, MAX_LAYERS),
        image_size=vision.integer("image_size", 224, 1, MAX_SIDE),
        patch_size=vision.integer("patch_size", 32, 1, 1 << 10),
        vision_eps=vision.positive_float("layer_norm_eps", 1e-6),
        scale_factor=top.integer("scale_factor", 2, 1, 64),
        fake_token_id=_special_token(top, "fake"),
        global_token_id=_special_token(top, "glob"),
    )


def vlm_config_json(vlm: VlmConfig) -> dict[str, Any]:
    """The contents of a vlm_config.json that `parse_vlm_config` reads back to `vlm`."""
    result: dict[str, Any] = {
        "text_config": {
            "hidden_size": vlm.text_width,
            "intermediate_size": vlm.text_mlp,
            "num_attention_heads": vlm.heads,
            "num_key_value_heads": vlm.kv_heads,
            "head_dim": vlm.head_dim,
            "num_hidden_layers": vlm.text_layers,
            "vocab_size": vlm.vocab,
            "rms_norm_eps": vlm.rms_eps,
        },
        "vision_config": {
            "hidden_size": vlm.vision_width,
            "intermediate_size": vlm.vision_mlp,
            "num_attention_heads": vlm.vision_heads,
            "num_hidden_layers": vlm.vision_layers,
            "image_size": vlm.image_size,
            "patch_size": vlm.patch_size,
            "layer_norm_eps": vlm.vision_eps,
        },
        "scale_factor": vlm.scale_factor,
    }
    if vlm.fake_token_id is not None and vlm.global_token_id is not None:
        result["image_special_tokens"] = {"fake": vlm.fake_token_id, "glob": vlm.global_token_id}
    return result


def _given(fields: ConfigFields, key: str, default: int) -> int:
    """Like integer(), but null counts as absent: LlamaConfig saves these two as null."""
    return default if fields.raw.get(key) is None else fields.integer(key, None, 1)


def _special_token(top: ConfigFields, which: str) -> int | None:
    if top.raw.get("image_special_tokens") is None:
        return None
    where = f"{top.where}: image_special_tokens"
    return ConfigFields(top.mapping("image_special_tokens"), where).integer(which, None, 0)

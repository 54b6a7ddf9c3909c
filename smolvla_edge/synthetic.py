"""Writes a complete LeRobot SmolVLA checkpoint folder with deterministic, untrained weights.

For demonstrations, tests and benchmarks on machines without network: same files, names, shapes and
dtypes as a saved policy, so everything that reads a real checkpoint reads this one. Speed and
plumbing are real; the actions mean nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smolvla_edge.config import ModelConfig, build_model_config, parse_policy_config
from smolvla_edge.counter_values import weight_chunks
from smolvla_edge.errors import CheckpointError
from smolvla_edge.names import WEIGHT_DTYPES, expected_tensors, lerobot_name
from smolvla_edge.safetensors_file import SafetensorsWriter, TensorLayout
from smolvla_edge.synthetic_files import lerobot_config, write_processors, write_tokenizer
from smolvla_edge.vlm_config import KNOWN_VLMS, VlmConfig, vlm_config_json

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, tensor being written

CAMERAS = ("observation.images.camera1", "observation.images.camera2")

TINY_VLM = VlmConfig(
    text_width=96, text_mlp=128, heads=6, kv_heads=2, head_dim=16, text_layers=6,
    vocab=272, rms_eps=1e-5,
    vision_width=64, vision_mlp=128, vision_heads=4, vision_layers=2,
    image_size=64, patch_size=16, vision_eps=1e-6, scale_factor=2,
    fake_token_id=265, global_token_id=264,
)  # fmt: skip

_SIZES: dict[str, tuple[VlmConfig, dict[str, Any]]] = {
    # The architecture and settings of lerobot/smolvla_base.
    "full": (
        KNOWN_VLMS["HuggingFaceTB/SmolVLM2-500M-Video-Instruct"],
        {"prefix_length": 0, "pad_language_to": "max_length", "num_expert_layers": 0},
    ),
    # LIBERO-style checkpoints (HuggingFaceVLA/smolvla_libero): every VLM layer, a narrow expert.
    "libero": (
        KNOWN_VLMS["HuggingFaceTB/SmolVLM2-500M-Video-Instruct"],
        {
            "prefix_length": 0,
            "pad_language_to": "longest",
            "num_expert_layers": -1,
            "num_vlm_layers": 0,
            "expert_width_multiplier": 0.5,
        },
    ),
    "tiny": (
        TINY_VLM,
        {
            "chunk_size": 8,
            "n_action_steps": 8,
            "num_steps": 4,
            "max_state_dim": 10,
            "max_action_dim": 8,
            "resize_imgs_with_padding": [64, 64],
            "num_vlm_layers": 4,
        },
    ),
}


def make_checkpoint(
    dest: str | os.PathLike[str],
    size: str = "full",
    *,
    dtypes: str = "mixed",
    vlm: VlmConfig | None = None,
    overrides: Mapping[str, Any] | None = None,
    cameras: Sequence[str] = CAMERAS,
    state_dim: int = 6,
    action_dim: int = 6,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Writes a checkpoint to the new folder `dest` and returns its path.

    `size` is "full" (SmolVLA's 450 M parameters, 907 MB), "libero" (32 VLM layers, an expert half
    as wide as the VLM) or "tiny" (0.4 M); `vlm` and `overrides` (keys of LeRobot's config.json)
    change it from there. `dtypes` is "mixed" (bfloat16 and float32
    as in smolvla_base), "F32", "BF16" or "F16". One tensor is written at a time, so that memory
    stays small; the folder appears under its name when it is complete.

    Raises CheckpointError when `dest` exists, or for settings that no SmolVLA can have.
    """
    dest = Path(dest)
    if dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise CheckpointError(f"{dest} exists already: expected a new or empty folder to write to")
    if size not in _SIZES:
        raise CheckpointError(f"size: expected one of {', '.join(_SIZES)}, got {size!r}")
    preset_vlm, preset = _SIZES[size]
    vlm = vlm or preset_vlm
    config = lerobot_config(cameras, state_dim, action_dim, {**preset, **(overrides or {})})
    policy = parse_policy_config(config, "the configuration to write")
    model = build_model_config(policy, vlm)
    _check_dtypes(dtypes)
    dest.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    try:
        _write_json(partial / "config.json", config)
        if vlm != KNOWN_VLMS.get(policy.vlm_model_name):
            _write_json(partial / "vlm_config.json", vlm_config_json(vlm))
        write_processors(partial, config)
        write_tokenizer(partial, model)
        write_weights(partial / "model.safetensors", model, dtypes, seed, progress)
        partial.chmod(0o755)  # mkdtemp's 0700 is for secrets
        os.replace(partial, dest)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return dest


def reference_model() -> ModelConfig:
    """The model of a checkpoint of size "full", without writing one."""
    vlm, preset = _SIZES["full"]
    config = lerobot_config(CAMERAS, 6, 6, preset)
    return build_model_config(parse_policy_config(config, "the reference configuration"), vlm)


def write_weights(
    path: Path,
    model: ModelConfig,
    dtypes: str = "mixed",
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Writes the model.safetensors of such a checkpoint, tensor by tensor."""
    layouts = weight_layouts(model, dtypes)
    total = sum(layout.nbytes for layout in layouts)
    done = 0
    with SafetensorsWriter(path, layouts, {"format": "pt"}) as writer:
        for layout in writer.order:
            if progress:
                progress(done, total, layout.name)
            writer.write(layout.name, weight_chunks(layout.name, layout.shape, layout.dtype, seed))
            done += layout.nbytes
    if progress:
        progress(total, total, "")


def weight_layouts(model: ModelConfig, dtypes: str = "mixed") -> list[TensorLayout]:
    """Every tensor of the model as LeRobot saves it, dead ones included, by LeRobot's names."""
    _check_dtypes(dtypes)
    return [
        TensorLayout(
            lerobot_name(name),
            _base_dtype(name, model) if dtypes == "mixed" else dtypes,
            spec.shape,
        )
        for name, spec in expected_tensors(model).items()
    ]


def _check_dtypes(dtypes: str) -> None:
    if dtypes not in ("mixed", *WEIGHT_DTYPES):
        raise CheckpointError(f"dtypes: expected mixed, {', '.join(WEIGHT_DTYPES)}, got {dtypes!r}")


def _base_dtype(name: str, model: ModelConfig) -> str:
    """The dtype of a tensor in smolvla_base: LeRobot casts only what it takes from the VLM.

    What it builds itself stays float32: the five heads, and K and V of the cross layers.
    """
    part, _, rest = name.partition(".")
    if part not in ("vision", "connector", "text", "expert"):
        return "F32"
    if part == "expert" and rest.endswith(("attn.k.weight", "attn.v.weight")):
        layer = int(rest.split(".")[1])
        return "BF16" if model.is_self_layer(layer * model.expert_layer_stride) else "F32"
    return "BF16"


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")

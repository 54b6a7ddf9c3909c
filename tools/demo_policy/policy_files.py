"""A LeRobot checkpoint folder of trained weights: what the normal loader reads, nothing special."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smolvla_edge.config import ModelConfig, build_model_config, parse_policy_config
from smolvla_edge.names import canonical_name
from smolvla_edge.policy_config import ACTION, STATE
from smolvla_edge.safetensors_file import SafetensorsWriter
from smolvla_edge.synthetic import weight_layouts
from smolvla_edge.synthetic_files import lerobot_config, write_processors
from smolvla_edge.vlm_config import vlm_config_json
from tools.demo_policy.batches import Demonstrations
from tools.demo_policy.recipe import CAMERA, CONFIG, VLM
from tools.demo_policy.tokens import write_tokenizer


def model_config() -> ModelConfig:
    return build_model_config(parse_policy_config(_config(), "the recipe"), VLM)


def released_dtypes() -> dict[str, torch.dtype]:
    """The dtype of each weight, by canonical name, in a released SmolVLA."""
    kinds = {"BF16": torch.bfloat16, "F32": torch.float32}
    return {str(canonical_name(x.name)): kinds[x.dtype] for x in weight_layouts(model_config())}


def statistics(data: Demonstrations) -> dict[str, np.ndarray]:
    """Statistics of states and actions, under the names of LeRobot's processor files."""
    result: dict[str, np.ndarray] = {}
    for name, values in ((STATE, data.state), (ACTION, data.action)):
        wide = values.double()
        stats = {
            "mean": wide.mean(0), "std": wide.std(0, correction=0),
            "min": wide.amin(0), "max": wide.amax(0),
        }  # fmt: skip
        result |= {f"{name}.{stat}": value.float().numpy() for stat, value in stats.items()}
        result[f"{name}.count"] = np.array([len(values)], np.float32)
    return result


def write_checkpoint(
    folder: Path, weights: Mapping[str, Tensor], stats: Mapping[str, np.ndarray]
) -> None:
    """Replace `folder` by a checkpoint of these weights (float32, by canonical name).

    Dtypes are those of a released SmolVLA: the VLM and the expert in bfloat16, the heads and the
    cross-attention keys and values in float32. Tensors that reach no action are left out.
    """
    config = _config()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "config.json").write_text(json.dumps(config, indent=4) + "\n")
    (partial / "vlm_config.json").write_text(json.dumps(vlm_config_json(VLM), indent=4) + "\n")
    write_processors(partial, config, stats)
    write_tokenizer(partial / "tokenizer")
    live = [x for x in weight_layouts(model_config()) if canonical_name(x.name) in weights]
    with SafetensorsWriter(partial / "model.safetensors", live, {"format": "pt"}) as writer:
        for layout in writer.order:
            value = weights[str(canonical_name(layout.name))].detach().float().cpu()
            if layout.dtype == "BF16":
                writer.write(layout.name, value.bfloat16().view(torch.int16).numpy().view("u2"))
            else:
                writer.write(layout.name, value.numpy())
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _config() -> dict[str, object]:
    return lerobot_config([CAMERA], 4, 4, CONFIG)

"""The state of a training run on disk: safetensors, no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from tools.demo_policy.train import Learner

_MOMENTS = ("exp_avg", "exp_avg_sq")


def keep(path: Path, learner: Learner) -> None:
    """Write path.safetensors; an interrupted write leaves the older one."""
    tensors: dict[str, Tensor] = {f"average.{n}": x for n, x in learner.average.items()}
    for name, weight in learner.weights.items():
        moments = learner.optimizer.state[weight]
        tensors[f"weight.{name}"] = weight.detach()
        tensors |= {f"{moment}.{name}": moments[moment] for moment in _MOMENTS}
    partial = path.with_suffix(".partial")
    found = {name: x.contiguous().cpu() for name, x in tensors.items()}
    save_file(found, partial, {"step": json.dumps(learner.step)})
    os.replace(partial, path.with_suffix(".safetensors"))


def step_of(path: Path) -> int:
    """How far the run is whose state `keep` wrote; 0 without one."""
    file = path.with_suffix(".safetensors")
    if not file.is_file():
        return 0
    with safe_open(file, "pt") as opened:
        return int(json.loads(opened.metadata()["step"]))


def restore(path: Path, learner: Learner, device: str) -> None:
    """What `keep` wrote, if anything."""
    file = path.with_suffix(".safetensors")
    if not file.is_file():
        return
    tensors = load_file(file, device=device)
    learner.step = step_of(path)
    learner.average = {name: tensors[f"average.{name}"] for name in learner.average}
    for name, weight in learner.weights.items():
        with torch.no_grad():
            weight.copy_(tensors[f"weight.{name}"])
        learner.optimizer.state[weight] = {
            "step": torch.tensor(float(learner.step)),
            **{moment: tensors[f"{moment}.{name}"].clone() for moment in _MOMENTS},
        }

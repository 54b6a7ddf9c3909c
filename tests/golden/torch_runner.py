"""Runs the torch reference on a golden case."""

from __future__ import annotations

import numpy as np
import torch
from golden_support import Observation

from smolvla_edge.model import SmolVLA, letterbox

Trace = dict[str, np.ndarray]


def pixels_of(observation: Observation, size: tuple[int, int] | None) -> list[torch.Tensor]:
    """Model pixels per camera; a blank camera is black, in the last frame's size."""
    pixels: list[torch.Tensor] = []
    for frame in observation.frames:
        if frame is None:
            pixels.append(torch.full_like(pixels[-1], -1.0))
        else:
            pixels.append(letterbox(torch.from_numpy(frame), size))
    return pixels


def trace(
    model: SmolVLA, observation: Observation, pixels: list[torch.Tensor] | None = None
) -> Trace:
    """Every intermediate under its golden name; bfloat16 widened to float32."""
    recorded: dict[str, torch.Tensor] = {}
    model.sample_actions(
        pixels_of(observation, model.config.resize) if pixels is None else pixels,
        torch.from_numpy(observation.camera_mask),
        torch.from_numpy(observation.tokens),
        torch.from_numpy(observation.token_mask),
        torch.from_numpy(observation.state),
        torch.from_numpy(observation.noise),
        guidance=observation.guidance,
        record=recorded.__setitem__,
    )
    return {
        name: (value.float() if value.is_floating_point() else value).numpy()
        for name, value in recorded.items()
    }

"""The sine and cosine embedding of a step's time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smolvla_edge.config import ModelConfig


def frequencies(config: ModelConfig) -> Tensor:
    """float64 [expert_width / 2]; float32 would turn the fastest by a visible part of a round."""
    fraction = torch.linspace(0, 1, config.expert_width // 2, dtype=torch.float64)
    low, high = config.min_period, config.max_period
    return 1.0 / (low * (high / low) ** fraction) * 2 * math.pi

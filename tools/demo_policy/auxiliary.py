"""The auxiliary loss: from the image tokens alone, tell where hand, objects and goal are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smolvla_edge.config import ModelConfig
from tools.demo_policy.batches import Demonstrations

# Of Meta-World's 39 numbers: hand, gripper, first object, second object, goal.
PLACES = [0, 1, 2, 3, 4, 5, 6, 11, 12, 13, 36, 37, 38]
_STILL = 1e-3  # metres; what moves less in a task is not asked for


class Auxiliary(nn.Module):
    """A two-layer readout of all image tokens; needed while training only.

    Targets are normalised for each instruction by its own mean and deviation, so that the
    millimetres of one task count as much as the decimetres of another.
    """

    def __init__(self, config: ModelConfig, data: Demonstrations):
        super().__init__()
        tokens = (config.image_size // config.patch_size // config.scale_factor) ** 2
        self.read = nn.Sequential(
            nn.Linear(tokens * config.text_width, 128), nn.GELU(), nn.Linear(128, len(PLACES))
        )
        means, spreads = [], []
        for task in range(len(data.tasks)):
            places = data.environment[data.task == task][:, PLACES].double()
            means.append(places.mean(0).float())
            spread = places.std(0, correction=0).float()
            spreads.append(torch.where(spread < _STILL, torch.inf, spread))
        self.register_buffer("mean", torch.stack(means), persistent=False)
        self.register_buffer("spread", torch.stack(spreads), persistent=False)

    def forward(self, image_tokens: Tensor, environment: Tensor, task: Tensor) -> Tensor:
        """image_tokens [n, t, width], environment [n, 39], task [n] -> scalar."""
        target = (environment[:, PLACES] - self.mean[task]) / self.spread[task]
        return F.smooth_l1_loss(self.read(image_tokens.flatten(1).float()), target)

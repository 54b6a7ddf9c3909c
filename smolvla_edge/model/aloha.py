"""Conversions between an Aloha robot's joints and the space that pi-style policies are trained in.

The same as smolvla_edge/aloha.py, which says what they are, on tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from smolvla_edge.aloha import (
    ANGLE_RANGE,
    ARM_LENGTH,
    FLIPPED,
    GRIPPERS,
    HORN_RADIUS,
    JOINT_RANGE,
    POSITION_RANGE,
    from_unit,
    to_unit,
)


def _convert(x: Tensor, gripper: Callable[[Tensor], Tensor]) -> Tensor:
    x = x.clone()
    x[..., FLIPPED] = -x[..., FLIPPED]
    x[..., GRIPPERS] = gripper(x[..., GRIPPERS])
    return x


def state_from_aloha(state: Tensor) -> Tensor:
    """Normalised state [..., >= 14] of the robot -> what the model reads."""

    def gripper(x: Tensor) -> Tensor:
        position = from_unit(x, *POSITION_RANGE)
        sine = (HORN_RADIUS**2 + position**2 - ARM_LENGTH**2) / (2 * HORN_RADIUS * position)
        angle: Tensor = to_unit(torch.arcsin(sine.clamp(-1.0, 1.0)), *ANGLE_RANGE)
        return angle

    return _convert(state, gripper)


def actions_to_aloha(actions: Tensor) -> Tensor:
    """The model's actions [..., >= 14] -> normalised actions of the robot."""
    return _convert(actions, lambda x: to_unit(from_unit(x, *ANGLE_RANGE), *JOINT_RANGE))

"""Conversions between an Aloha robot's joints and the space that pi-style policies are trained in.

Used when a policy was configured with `adapt_to_pi_aloha`: two arms of seven joints, of which four
change sign and the two grippers change from a linear position to an angle and back. The constants
are the Aloha and Interbotix ones in LeRobot's modeling_smolvla.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FLIPPED = [1, 2, 8, 9]
GRIPPERS = [6, 13]
POSITION_RANGE = (0.01844, 0.05800)  # puppet gripper, closed to open, metres
ANGLE_RANGE = (0.4, 1.5)  # radians, measured on a real robot
JOINT_RANGE = (-0.6213, 1.4910)  # puppet gripper joint, closed to open, radians
ARM_LENGTH, HORN_RADIUS = 0.036, 0.022  # metres


def _to_unit(x: Tensor, low: float, high: float) -> Tensor:
    return (x - low) / (high - low)


def _from_unit(x: Tensor, low: float, high: float) -> Tensor:
    return x * (high - low) + low


def _convert(x: Tensor, gripper: Callable[[Tensor], Tensor]) -> Tensor:
    x = x.clone()
    x[..., FLIPPED] = -x[..., FLIPPED]
    x[..., GRIPPERS] = gripper(x[..., GRIPPERS])
    return x


def state_from_aloha(state: Tensor) -> Tensor:
    """Normalised state [..., >= 14] of the robot -> what the model reads."""

    def gripper(x: Tensor) -> Tensor:
        position = _from_unit(x, *POSITION_RANGE)
        sine = (HORN_RADIUS**2 + position**2 - ARM_LENGTH**2) / (2 * HORN_RADIUS * position)
        return _to_unit(torch.arcsin(sine.clamp(-1.0, 1.0)), *ANGLE_RANGE)

    return _convert(state, gripper)


def actions_to_aloha(actions: Tensor) -> Tensor:
    """The model's actions [..., >= 14] -> normalised actions of the robot."""
    return _convert(actions, lambda x: _to_unit(_from_unit(x, *ANGLE_RANGE), *JOINT_RANGE))

"""Conversions between an Aloha robot's joints and the space that pi-style policies are trained in.

Used when a policy was configured with `adapt_to_pi_aloha`: two arms of seven joints, of which four
change sign and the two grippers change from a linear position to an angle and back. The constants
are the Aloha and Interbotix ones in LeRobot's modeling_smolvla.py. Here in numpy; model/aloha.py is
the torch reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FLIPPED = [1, 2, 8, 9]
GRIPPERS = [6, 13]
POSITION_RANGE = (0.01844, 0.05800)  # puppet gripper, closed to open, metres
ANGLE_RANGE = (0.4, 1.5)  # radians, measured on a real robot
JOINT_RANGE = (-0.6213, 1.4910)  # puppet gripper joint, closed to open, radians
ARM_LENGTH, HORN_RADIUS = 0.036, 0.022  # metres


def to_unit(x: Any, low: float, high: float) -> Any:
    return (x - low) / (high - low)


def from_unit(x: Any, low: float, high: float) -> Any:
    return x * (high - low) + low


def state_from_aloha(state: np.ndarray) -> np.ndarray:
    """Normalised state float32 [..., >= 14] of the robot -> what the model reads."""
    result = _flipped(state)
    position = from_unit(state[..., GRIPPERS], *POSITION_RANGE)
    sine = (HORN_RADIUS**2 + position**2 - ARM_LENGTH**2) / (2 * HORN_RADIUS * position)
    result[..., GRIPPERS] = to_unit(np.arcsin(sine.clip(-1.0, 1.0)), *ANGLE_RANGE)
    return result


def actions_to_aloha(actions: np.ndarray) -> np.ndarray:
    """The model's actions float32 [..., >= 14] -> normalised actions of the robot."""
    result = _flipped(actions)
    result[..., GRIPPERS] = to_unit(from_unit(actions[..., GRIPPERS], *ANGLE_RANGE), *JOINT_RANGE)
    return result


def _flipped(x: np.ndarray) -> np.ndarray:
    result = x.copy()
    result[..., FLIPPED] = -x[..., FLIPPED]
    return result

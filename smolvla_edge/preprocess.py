"""Observations: frames, state and task as a robot has them, checked before anything computes.

What passes here is passed on unchanged: nothing is cast, cut, clamped or transposed. The letterbox
belongs to the backends, and so does normalisation in the native one; `normalize` and `unnormalize`
are the same arithmetic in numpy, for the torch backend and as the test of the C++ one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.errors import InputError
from smolvla_edge.statistics import FeatureStatistics, Mode

# Bilinear resizing done by the caller may step outside [0, 1] by rounding, not by more.
_FLOAT_SLACK = 1e-4


def check_frame(name: str, frame: Any, resize: tuple[int, int] | None = None) -> np.ndarray:
    """The frame as a contiguous array [height, width, 3], uint8 or float32 in [0, 1], RGB.

    `resize` is the letterbox (width, height): a frame so thin that nothing of it would be left is
    refused. Raises InputError naming the camera, what was expected and what came.
    """
    if not isinstance(frame, np.ndarray) and hasattr(frame, "__array_interface__"):
        frame = np.asarray(frame)  # a PIL image; its pixels are what we ask for
    if not isinstance(frame, np.ndarray):
        raise InputError(
            f"{name}: expected a numpy array [height, width, 3] of uint8 or float32, got "
            f"{type(frame).__name__}{_torch_hint(frame)}"
        )
    came = f"{frame.dtype} {list(frame.shape)}"
    expected = f"{name}: expected an RGB frame [height, width, 3], got {came}"
    if frame.size == 0:
        raise InputError(f"{expected}: it is empty. Check the camera")
    _check_frame_shape(expected, frame.shape)
    if frame.dtype == np.float32:
        low, high = float(frame.min()), float(frame.max())  # NaN survives min and max
        if not (low >= -_FLOAT_SLACK and high <= 1 + _FLOAT_SLACK):
            raise InputError(_float_range(name, low, high))
    elif frame.dtype != np.uint8:
        raise InputError(
            f"{name}: expected uint8 (0..255) or float32 (0..1), got {came}. Convert it yourself, "
            "for example frame.astype(np.float32)"
        )
    if resize is not None:
        _check_thin(name, frame.shape[1], frame.shape[0], resize)
    return np.ascontiguousarray(frame)


def check_state(state: Any, dim: int, name: str = "observation.state") -> np.ndarray:
    """The state as a contiguous float32 [dim] array. Raises InputError."""
    if not isinstance(state, np.ndarray):
        raise InputError(
            f"{name}: expected a numpy float32 array [{dim}], got {type(state).__name__}"
            f"{_torch_hint(state)}. Use np.asarray(state, np.float32)"
        )
    came = f"{state.dtype} {list(state.shape)}"
    if state.dtype != np.float32:
        raise InputError(f"{name}: expected float32 [{dim}], got {came}. Use .astype(np.float32)")
    if state.shape != (dim,):
        raise InputError(f"{name}: expected {dim} values in one dimension, got {came}")
    bad = np.flatnonzero(~np.isfinite(state))
    if bad.size:
        raise InputError(
            f"{name}: expected finite values, got {state[bad[0]]} at index {int(bad[0])} (indices "
            f"{bad.tolist()}): check the sensor"
        )
    return np.ascontiguousarray(state)


def check_noise(noise: Any, rows: int, width: int) -> np.ndarray:
    """Noise as a contiguous float32 [>= rows, width] array. Raises InputError."""
    if not isinstance(noise, np.ndarray) or noise.dtype != np.float32 or noise.ndim != 2:
        came = (
            f"{noise.dtype} {list(noise.shape)}"
            if isinstance(noise, np.ndarray)
            else type(noise).__name__
        )
        raise InputError(f"noise: expected float32 [{rows}, {width}], got {came}")
    if noise.shape[0] < rows or noise.shape[1] != width:
        raise InputError(
            f"noise: expected float32 [{rows}, {width}] (at least {rows} rows), got "
            f"{list(noise.shape)}"
        )
    if not np.isfinite(noise).all():
        raise InputError("noise: expected finite values, got NaN or infinity")
    return np.ascontiguousarray(noise)


def normalize(values: NDArray[np.float32], statistics: FeatureStatistics) -> NDArray[np.float32]:
    """Robot units -> model space, float32 [..., dim], in LeRobot's order of operations."""
    if statistics.mode is Mode.IDENTITY:
        return values
    first, second = statistics.arrays()
    eps = np.float32(statistics.eps)
    if statistics.mode is Mode.MEAN_STD:
        result = (values - first) / (second + eps)
    else:
        # eps never replaces a zero range: the statistics refuse one.
        width = second - first + eps if statistics.eps_in_range else second - first
        result = np.float32(2) * (values - first) / width - np.float32(1)
    return np.asarray(result, np.float32)


def unnormalize(values: NDArray[np.float32], statistics: FeatureStatistics) -> NDArray[np.float32]:
    """Model space -> robot units, float32 [..., dim]; eps plays no part in this direction."""
    if statistics.mode is Mode.IDENTITY:
        return values
    first, second = statistics.arrays()
    if statistics.mode is Mode.MEAN_STD:
        result = values * second + first
    else:
        result = (values + np.float32(1)) / np.float32(2) * (second - first) + first
    return np.asarray(result, np.float32)


def _check_frame_shape(expected: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 4 and shape[0] == 1:
        raise InputError(f"{expected}: pass one frame without the batch dimension, frame[0]")
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        raise InputError(
            f"{expected}: it is a grey image. If the policy was trained on one, repeat its "
            "channel: np.repeat(frame.reshape(*frame.shape[:2], 1), 3, axis=2)"
        )
    if len(shape) != 3:
        raise InputError(f"{expected}: pass one frame of three dimensions per camera")
    if shape[2] == 3:
        return
    if shape[0] == 3:
        raise InputError(f"{expected}: channels come first, use frame.transpose(1, 2, 0)")
    if shape[2] == 4:
        raise InputError(f"{expected}: drop the alpha channel, frame[..., :3]")
    raise InputError(f"{expected}: {shape[2]} channels are not RGB")


def _float_range(name: str, low: float, high: float) -> str:
    if np.isnan(low) or np.isnan(high):
        return f"{name}: expected pixels in [0, 1], got NaN: check the camera"
    hint = " It looks like 0..255: pass uint8, or divide by 255" if high > 2 else ""
    return f"{name}: expected float32 pixels in [0, 1], got {low:g} to {high:g}.{hint}"


def _check_thin(name: str, width: int, height: int, resize: tuple[int, int]) -> None:
    ratio = max(width / resize[0], height / resize[1])  # LeRobot's resize_with_pad
    if int(width / ratio) == 0 or int(height / ratio) == 0:
        raise InputError(
            f"{name}: expected a frame that fits {resize[0]}x{resize[1]} with something left, got "
            f"{width}x{height} pixels, of which a side of 0 would remain"
        )


def _torch_hint(value: object) -> str:
    return "; use tensor.cpu().numpy()" if type(value).__module__.startswith("torch") else ""

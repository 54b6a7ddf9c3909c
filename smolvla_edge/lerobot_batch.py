"""LeRobot's batches: what comes after its preprocessor, checked and split into single observations.

    observation.images.*           float32 [B, 3, H, W] in [0, 1]   (5-D: the last frame counts)
    observation.images.*_padding_mask   bool [B], optional: False where the camera is absent
    observation.state              float32 [B, state_dim], normalised   (3-D: the last step counts)
    observation.language.tokens    int64 [B, L]
    observation.language.attention_mask   bool [B, L]

Arrays are numpy or torch; torch is never imported here, only used through the tensors that come.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from smolvla_edge.contract import STATE, Contract
from smolvla_edge.errors import InputError
from smolvla_edge.preprocess import check_frame, check_state

TOKENS = "observation.language.tokens"
TOKEN_MASK = "observation.language.attention_mask"
_CAMERA_PREFIX = "observation.image"
_NOT_FRAMES = ("_padding_mask", "_is_pad")


@dataclass(frozen=True)
class Sample:
    """One observation of a batch, as a backend's `predict` takes it; the state is normalised.

    cameras: the model's name of each frame.
    """

    cameras: list[str]
    frames: list[np.ndarray | None]
    tokens: np.ndarray
    state: np.ndarray


@dataclass(frozen=True)
class Kind:
    """Numpy, or torch on a device: what the caller gave and gets back."""

    device: Any = None

    @classmethod
    def of(cls, value: Any) -> Kind:
        return cls(value.device) if _is_torch(value) else cls()

    def give_back(self, array: np.ndarray) -> Any:
        if self.device is None:
            return array
        # A tensor came in, so torch is loaded; this module must not be what loads it.
        return sys.modules["torch"].from_numpy(array).to(self.device)


def as_numpy(value: Any, name: str) -> np.ndarray:
    """The array, or the tensor as an array. Raises InputError for anything else."""
    if _is_torch(value):
        torch = sys.modules["torch"]
        if value.dtype == torch.bfloat16:  # numpy has no such type
            raise InputError(f"{name}: expected float32, got bfloat16; use tensor.float()")
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray):
        raise InputError(f"{name}: expected a numpy array or tensor, got {type(value).__name__}")
    return value


def split_batch(
    batch: Mapping[str, Any],
    contract: Contract,
    *,
    resize: tuple[int, int] | None,
    allow_missing_cameras: bool,
) -> list[Sample]:
    """The observations of a batch, in order. Raises InputError naming the key."""
    if not isinstance(batch, Mapping):
        raise InputError(
            f"batch: expected a mapping of names to arrays, got {type(batch).__name__}"
        )
    state = _array(batch, STATE, (2, 3), contract)
    if state.ndim == 3:
        state = state[:, -1]
    size = state.shape[0]
    if size == 0:
        raise InputError(f"{STATE}: expected at least one observation, got shape [0, ...]")
    tokens = _array(batch, TOKENS, (2,), contract)
    mask = _array(batch, TOKEN_MASK, (2,), contract)
    if tokens.dtype != np.int64 or mask.shape != tokens.shape or mask.dtype != np.bool_:
        raise InputError(
            f"expected {TOKENS} int64 [B, L] and {TOKEN_MASK} bool of the same shape, got "
            f"{tokens.dtype} {list(tokens.shape)} and {mask.dtype} {list(mask.shape)}"
        )
    images = {name: _images(batch, name, size) for name in batch if _is_camera(name)}
    chosen = contract.select_frames(images, allow_missing=allow_missing_cameras, renamed=True)
    masks = {name: _camera_mask(batch, name, size) for name, _ in chosen}
    if tokens.shape[0] != size:
        raise InputError(f"{TOKENS}: expected {size} rows as in {STATE}, got {tokens.shape[0]}")
    samples = []
    for row in range(size):
        frames = [
            None
            if stack is None or not masks[name][row]
            else check_frame(f"{name}[{row}]", stack[row].transpose(1, 2, 0), resize)
            for name, stack in chosen
        ]
        samples.append(
            Sample(
                [name for name, _ in chosen],
                frames,
                np.ascontiguousarray(tokens[row][mask[row]]),
                check_state(state[row], contract.state_dim),
            )
        )
    return samples


def split_rows(value: Any, name: str, size: int) -> list[np.ndarray]:
    """[size, rows, width] (or [rows, width] for a batch of one) -> one array for each sample."""
    array = as_numpy(value, name)
    if array.ndim == 2 and size == 1:
        return [array]
    if array.ndim != 3 or array.shape[0] != size:
        raise InputError(f"{name}: expected [{size}, rows, width], got {list(array.shape)}")
    return list(array)


def _array(
    batch: Mapping[str, Any], name: str, ranks: tuple[int, ...], contract: Contract
) -> np.ndarray:
    if name not in batch:
        expected = ", ".join((*contract.cameras, STATE, TOKENS, TOKEN_MASK))
        raise InputError(
            f"the batch has no {name!r}: expected {expected}; got {', '.join(batch) or 'nothing'}. "
            "This is LeRobot's batch after its preprocessor; for raw frames use predict()"
        )
    value = as_numpy(batch[name], name)
    if value.ndim not in ranks:
        raise InputError(
            f"{name}: expected {' or '.join(map(str, ranks))} dimensions with the batch first, got "
            f"shape {list(value.shape)}"
        )
    return value


def _images(batch: Mapping[str, Any], name: str, size: int) -> np.ndarray:
    value = as_numpy(batch[name], name)
    if value.ndim == 5:
        value = value[:, -1]
    if value.ndim != 4 or value.shape[:2] != (size, 3) or value.dtype != np.float32:
        raise InputError(
            f"{name}: expected float32 [{size}, 3, height, width] in [0, 1], got {value.dtype} "
            f"{list(value.shape)}"
        )
    return value


def _camera_mask(batch: Mapping[str, Any], name: str, size: int) -> np.ndarray:
    key = f"{name}_padding_mask"
    if key not in batch:
        return np.ones(size, bool)
    mask = as_numpy(batch[key], key)
    if mask.shape != (size,):
        raise InputError(f"{key}: expected bool [{size}], got {mask.dtype} {list(mask.shape)}")
    return mask.astype(bool)


def _is_camera(name: object) -> bool:
    return (
        isinstance(name, str) and name.startswith(_CAMERA_PREFIX) and not name.endswith(_NOT_FRAMES)
    )


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)

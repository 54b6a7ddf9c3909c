"""Frames as `verify` shows them to the model: letterboxed by the reference and by the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from smolvla_edge.errors import InputError

if TYPE_CHECKING:
    from smolvla_edge.source import Source


def reference_pixels(source: Source, frames: Sequence[np.ndarray | None]) -> dict[str, np.ndarray]:
    """float32 [1, 3, H, W] per camera that is there, letterboxed by torch."""
    import torch

    from smolvla_edge.model import letterbox

    result = {}
    for i, frame in enumerate(frames):
        if frame is None:
            continue
        values = torch.from_numpy(frame).float() / 255
        image = letterbox(values.permute(2, 0, 1)[None].contiguous(), source.model.resize)
        result[f"letterbox.{i}"] = image.numpy()
    if len({image.shape for image in result.values()}) > 1:
        raise InputError(
            "this policy has no resize, and verify compares frames of one size only, got "
            f"{', '.join(str(image.shape[2:]) for image in result.values())}. Give frames of one "
            "size"
        )
    return result


def native_pixels(source: Source, frames: Sequence[np.ndarray | None]) -> dict[str, np.ndarray]:
    """The same by the C++ core; nothing for a policy without a resize, which touches no frame."""
    from smolvla_edge.backends.native import load_core

    if source.model.resize is None:
        return {}
    width, height = source.model.resize
    return {
        f"letterbox.{i}": load_core().letterbox(frame, width, height)[None]
        for i, frame in enumerate(frames)
        if frame is not None
    }

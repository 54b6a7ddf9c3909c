"""A camera's settings and calls, for tests of what the token cache decides."""

from __future__ import annotations

from typing import Any

import numpy as np

from smolvla_edge.plan import Cache
from smolvla_edge.token_blocks import CameraBlocks, Choice, Setting

SIDE = 8
BLOCKS = SIDE * SIDE


def setting(side: int = SIDE, top: int = 0, left: int = 0, **cache: Any) -> Setting:
    """One that never computes anything unasked; `cache` changes it. top, left: rows and columns of
    blocks that are kept as padding."""
    plain = {"threshold": 0.5, "keyframe_every": 1000, "max_age": 1000, "dilate": 0, "check": 0}
    rule = Cache(**{**plain, "padding": top + left > 0, **cache})
    return Setting((64, 64), side, (5, 9), (), rule, (top, left))


def change(side: int = SIDE, **blocks: float) -> np.ndarray:
    """Of the blocks b<number>; 0 of the others."""
    result = np.zeros(side * side, np.float32)
    for name, value in blocks.items():
        result[int(name[1:])] = value
    return result


def choose(blocks: CameraBlocks, now: Setting, changed: np.ndarray) -> Choice:
    return blocks.choose(now, lambda: changed)


def started(now: Setting) -> CameraBlocks:
    """A camera after its first keyframe."""
    blocks = CameraBlocks()

    def never() -> np.ndarray:
        raise AssertionError("there is no frame to compare with")

    assert blocks.choose(now, never).why == "first"
    return blocks

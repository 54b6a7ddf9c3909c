"""The token cache's decision: which blocks of a camera's frame are computed anew in a call.

A block is what becomes one token; blocks are numbered in raster order. There are no pixels and no
tokens here: a backend says how much each block changed, computes what is chosen and keeps the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.plan import Cache


@dataclass(frozen=True)
class Setting:
    """What kept tokens depend on beside the pixels of their frame.

    size: height, width of the frame as vision sees it.  side: blocks along a side of it.  prompt:
    token ids.  skipped: vision layers left out.  padding: rows of blocks at the top and columns at
    the left that are nothing but padding and are to be kept as such; none unless cache.padding.
    """

    size: tuple[int, int]
    side: int
    prompt: tuple[int, ...]
    skipped: tuple[int, ...]
    cache: Cache
    padding: tuple[int, int] = (0, 0)

    def free(self) -> NDArray[np.bool_]:
        """The blocks [side * side] that are not kept as padding."""
        result = np.zeros((self.side, self.side), bool)
        result[self.padding[0] :, self.padding[1] :] = True
        return result.ravel()


@dataclass(frozen=True)
class Choice:
    """What one call computes of one camera.

    why: of a keyframe, which computes all blocks but kept padding; None otherwise.  blocks: to be
    computed, ascending; none where all is reused.  clean: those of them that did not change
    themselves: their tokens show how far the reused ones are off.  dirty: the part of all blocks
    that is computed.  oldest: the largest age of a block in use after this call, kept padding
    aside.
    """

    why: str | None
    blocks: NDArray[np.int64]
    clean: NDArray[np.int64]
    dirty: float
    oldest: int

    @property
    def keyframe(self) -> bool:
        return self.why is not None


class CameraBlocks:
    """The state of one camera between calls: how old each block is, and what it was made for."""

    def __init__(self) -> None:
        self._setting: Setting | None = None
        self._age: NDArray[np.int64] = np.zeros(0, np.int64)  # calls since a block was computed
        self._calls = 0  # since the last keyframe; an exact reuse counts in neither
        self._whole = False  # all blocks but kept padding are of one frame
        self._mass: NDArray[np.float32] | None = None  # of the last call: see attend

    def forget(self) -> None:
        """Nothing kept is to be used again: the next call is a keyframe."""
        self._setting = None

    def attend(self, mass: NDArray[np.float32]) -> None:
        """How much the expert looked at each block [side * side] in the call that was chosen last;
        the next one computes cache.attended of them, the most looked at."""
        self._mass = mass

    def choose(self, setting: Setting, change_of: Callable[[], NDArray[np.float32]]) -> Choice:
        """The choice of one call; the caller computes it, or calls `forget`.

        change_of: -> float32 [side * side], each block's change against the frame it was last
        computed from; asked only when there is such a frame of this setting.
        """
        mass, self._mass = self._mass, None
        why = self._misfit(setting)
        if why is not None:
            return self._first(setting, why)
        change, cache, free = change_of(), setting.cache, setting.free()
        if self._whole and not change.any():  # an identical frame: all is reused, exactly
            return self._computed(np.zeros_like(free), np.zeros_like(free), free)
        self._calls += 1
        self._age += 1
        if cache.threshold == 0 and change.any():
            return self._keyframe(free, "changed")
        if self._calls >= cache.keyframe_every:
            return self._keyframe(free, "every n")
        changed = ~(change <= np.float32(cache.threshold))  # NaN too
        near = dilated(changed.reshape(setting.side, -1), cache.dilate).ravel()
        wanted = (near | (self._age >= cache.max_age)) & free
        if mass is not None and np.isfinite(mass).all():
            order = np.argsort(-mass, kind="stable")
            wanted[order[free[order]][: cache.attended]] = True
        _add(wanted, free, np.argsort(-self._age, kind="stable"), cache.check)
        count = int(wanted.sum())
        if count > 3 * int(free.sum()) // 4:
            return self._keyframe(free, "scene")
        bucket = max(1, wanted.size // 8)  # few different sizes: a GPU prepares for each
        _add(wanted, free, np.lexsort((-self._age, -change)), -count % bucket)
        return self._computed(wanted, wanted & ~changed, free)

    def _misfit(self, setting: Setting) -> str | None:
        """Why nothing kept fits, or None."""
        made = self._setting
        if made is None:
            return "first"
        if made.size != setting.size:
            return "frame size"
        if made.prompt != setting.prompt:
            return "prompt"
        if (made.skipped, made.cache) != (setting.skipped, setting.cache):
            return "plan"
        return None if made.padding == setting.padding else "frame size"

    def _first(self, setting: Setting, why: str) -> Choice:
        """A keyframe that computes all blocks, padding too."""
        everything = np.ones(setting.side**2, bool)
        self._setting, self._age = setting, np.zeros(setting.side**2, np.int64)
        return self._keyframe(everything, why)

    def _keyframe(self, chosen: NDArray[np.bool_], why: str) -> Choice:
        self._age[chosen] = 0
        self._whole, self._calls = True, 0
        return Choice(why, np.flatnonzero(chosen), np.arange(0), float(chosen.mean()), 0)

    def _computed(
        self, chosen: NDArray[np.bool_], clean: NDArray[np.bool_], free: NDArray[np.bool_]
    ) -> Choice:
        self._age[chosen] = 0
        self._whole = self._whole and not chosen.any()
        return Choice(
            None,
            np.flatnonzero(chosen),
            np.flatnonzero(clean),
            float(chosen.mean()),
            int(self._age[free].max()),
        )


def dilated(blocks: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """blocks [side, side] and all within `by` blocks of one of them, diagonals included."""
    result = blocks.copy()
    for row, column in np.argwhere(blocks):
        result[max(0, row - by) : row + by + 1, max(0, column - by) : column + by + 1] = True
    return result


def _add(
    wanted: NDArray[np.bool_], free: NDArray[np.bool_], order: NDArray[np.int64], count: int
) -> None:
    """Want `count` more free blocks (as many as there are), the first in `order` not wanted yet."""
    wanted[order[(free & ~wanted)[order]][:count]] = True

"""What the token cache did with one camera's frame in one call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class CacheReport:
    """See token_blocks.py for how it comes about.

    keyframe: every token was computed but kept padding, `why` says for what reason: "first",
    "frame size", "prompt", "plan" (padding too), "changed", "every n" or "scene".  dirty: the part
    of the tokens that was computed: 0.0 where all were reused.  oldest: calls since the oldest
    token in use was computed, kept padding aside.  drift: the largest relative error that reusing a
    token would have meant, of those that were computed although they did not change; None when
    there are none.
    """

    keyframe: bool
    why: str | None
    dirty: float
    oldest: int
    drift: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

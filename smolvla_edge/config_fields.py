"""Typed access to one JSON configuration object: each field checked once, defaults in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from smolvla_edge.errors import CheckpointError

# Far above any real size and far below what makes a product of a few of them expensive. Checkpoint
# and bundle are held to the same ones, so that what converts also loads.
MAX_SIZE = 1 << 24
MAX_FLOAT = 1e9
MAX_LAYERS = 1024
MAX_DIM = 1 << 16  # of states and actions
MAX_COUNT = 1 << 16  # of steps, actions in a chunk, tokens
MAX_SIDE = 1 << 14  # of an image, in pixels
MAX_CAMERAS = 64
# How a checkpoint's velocity field makes a chunk: integrated, or distilled into one Euler step.
FLOW_MATCHING = "flow_matching"
ONE_STEP = "one_step"
FLOW_KINDS = (FLOW_MATCHING, ONE_STEP)


class ConfigFields:
    """Reads fields of `raw`; an absent key gives the default, a bad value a CheckpointError.

    Unknown keys are never looked at: files of newer and older LeRobot versions differ in them.
    """

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where

    def refuse(self, key: str, expected: str) -> NoReturn:
        came = f"{self.raw[key]!r:.200}" if key in self.raw else "nothing"
        raise CheckpointError(f"{self.where}: {key}: expected {expected}, got {came}")

    def boolean(self, key: str, default: bool) -> bool:
        value = self.raw.get(key, default)
        if type(value) is not bool:
            self.refuse(key, "true or false")
        return value

    def integer(self, key: str, default: int | None, low: int, high: int = MAX_SIZE) -> int:
        """An integer within [low, high]; a default of None makes the key required."""
        value = self.raw.get(key, default)
        if type(value) is not int or not low <= value <= high:
            self.refuse(key, f"an integer from {low} to {high}")
        return value

    def positive_float(self, key: str, default: float) -> float:
        value = self.raw.get(key, default)
        if type(value) not in (int, float) or not 0 < value <= MAX_FLOAT:  # false for NaN
            self.refuse(key, f"a positive number up to {MAX_FLOAT:g}")
        return float(value)

    def text(self, key: str, default: str, choices: tuple[str, ...] = ()) -> str:
        value = self.raw.get(key, default)
        if not isinstance(value, str) or (choices and value not in choices):
            self.refuse(key, f"one of {', '.join(choices)}" if choices else "a string")
        return value

    def must_be(self, key: str, only: object, why: str) -> None:
        """The key, where present, has the one value that is implemented."""
        if self.raw.get(key, only) != only:
            self.refuse(key, f"{only!r} ({why})")

    def mapping(self, key: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        value = self.raw.get(key, default)
        if not isinstance(value, Mapping):
            self.refuse(key, "an object")
        return value

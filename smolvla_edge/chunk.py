"""What `predict` returns, and the queue that hands it out one action at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

_Action = TypeVar("_Action")


@dataclass(frozen=True)
class ActionChunk:
    """The next actions of one robot.

    actions     float32 [horizon, action_dim], robot units
    normalized  float32 [horizon, action_dim], model space: what real-time chunking wants back
    timings     milliseconds: "preprocess", "vision", "prefix", "flow", "total"
    provenance  backend, device, ISA, plan, bundle digest, precision, seed, cameras, evaluations
                of the velocity, and by camera what the token cache did
    flags       sentences about an input that is legal but suspicious; empty when all is well
    """

    actions: np.ndarray
    normalized: np.ndarray
    timings: Mapping[str, float]
    provenance: Mapping[str, Any]
    flags: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.actions)


class ActionQueue(Generic[_Action]):
    """The actions of the last chunk that are still to be executed, and what they were for."""

    def __init__(self) -> None:
        self._actions: deque[_Action] = deque()
        self._purpose: object = None

    def refill(self, actions: list[_Action], purpose: object = None) -> None:
        self._actions = deque(actions)
        self._purpose = purpose

    def serves(self, purpose: object = None) -> bool:
        """Whether there is an action left, computed for this purpose."""
        return bool(self._actions) and self.was_for(purpose)

    def was_for(self, purpose: object) -> bool:
        """Whether the last chunk was computed for this purpose."""
        return self._purpose == purpose

    def pop(self) -> _Action:
        return self._actions.popleft()

    def clear(self) -> None:
        self._actions.clear()
        self._purpose = None

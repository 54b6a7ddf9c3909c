"""Real-time chunking: how strongly a new chunk is pulled towards what is left of the previous one.

The guidance itself is arithmetic of the flow loop and lives with it, in each backend. Here are
only its settings (from the checkpoint's `rtc_config`) and the checked request of one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from smolvla_edge.errors import ContractError, InputError

SCHEDULES = ("LINEAR", "EXP", "ONES", "ZEROS")
_MAX_HORIZON = 1 << 24


@dataclass(frozen=True)
class Guidance:
    """One call's guidance, every value resolved and checked.

    `prev` is float32 [n, d] in model space, n <= chunk_size, d <= max_action_dim; the flow loop
    zero-pads it to [chunk_size, max_action_dim].
    """

    prev: np.ndarray
    inference_delay: int
    execution_horizon: int
    schedule: str
    max_guidance_weight: float

    def to_engine(self) -> dict[str, Any]:
        """The `rtc` dict that `_core.Engine` takes."""
        return {
            "prev": self.prev,
            "inference_delay": self.inference_delay,
            "execution_horizon": self.execution_horizon,
            "schedule": self.schedule,
            "max_guidance_weight": self.max_guidance_weight,
        }


@dataclass(frozen=True)
class RtcSettings:
    """`rtc_config` of config.json; the defaults are LeRobot's own when the file has none.

    `enabled` is LeRobot's switch. It decides only whether `select_action` is refused (as there):
    guidance happens in exactly the calls that pass `prev_chunk_left_over`.
    """

    enabled: bool = False
    schedule: str = "LINEAR"
    max_guidance_weight: float = 10.0
    execution_horizon: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.enabled, bool):
            raise ContractError(f"rtc_config.enabled must be true or false, got {self.enabled!r}")
        if self.schedule not in SCHEDULES:
            raise ContractError(
                f"rtc_config.prefix_attention_schedule must be one of {', '.join(SCHEDULES)}, "
                f"got {self.schedule!r}"
            )
        weight = self.max_guidance_weight
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ContractError(f"rtc_config.max_guidance_weight must be a number, got {weight!r}")
        if not (np.isfinite(weight) and weight > 0):
            raise ContractError(f"rtc_config.max_guidance_weight must be > 0, got {weight!r}")
        horizon = self.execution_horizon
        if type(horizon) is not int or not 1 <= horizon <= _MAX_HORIZON:
            raise ContractError(
                f"rtc_config.execution_horizon must be an integer from 1 to {_MAX_HORIZON}, got "
                f"{horizon!r}"
            )

    def guidance(
        self,
        prev_chunk_left_over: Any,
        inference_delay: Any,
        execution_horizon: Any,
        *,
        chunk_size: int,
        max_action_dim: int,
    ) -> Guidance | None:
        """Check one call's arguments; None when there is nothing to be guided by.

        `prev_chunk_left_over` float32 [n, d]; without it `inference_delay` may be None, as in
        LeRobot; an `execution_horizon` of None is the checkpoint's.

        Raises InputError for a wrong shape, dtype, NaN or range.
        """
        if prev_chunk_left_over is None and inference_delay is None:
            inference_delay = 0
        delay = _count("inference_delay", inference_delay, minimum=0)
        horizon = (
            self.execution_horizon
            if execution_horizon is None
            else _count("execution_horizon", execution_horizon, minimum=1)
        )
        if prev_chunk_left_over is None:
            return None
        prev = _left_over(prev_chunk_left_over, chunk_size, max_action_dim)
        if prev.shape[0] == 0:  # the previous chunk was used up: nothing to pull towards
            return None
        # Beyond the chunk neither counts: bounded here, they fit every backend's integers.
        return Guidance(
            prev,
            min(delay, chunk_size),
            min(horizon, chunk_size),
            self.schedule,
            float(self.max_guidance_weight),
        )


def _count(name: str, value: Any, *, minimum: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise InputError(f"{name} must be an integer >= {minimum} (in actions), got {value!r}")
    if value < minimum:
        raise InputError(f"{name} must be >= {minimum} (in actions), got {int(value)}")
    return int(value)


def _left_over(value: Any, chunk_size: int, max_action_dim: int) -> np.ndarray:
    expected = f"float32 [n <= {chunk_size}, d <= {max_action_dim}] in model space"
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.ndim != 2:
        came = (
            f"{value.dtype} {list(value.shape)}"
            if isinstance(value, np.ndarray)
            else type(value).__name__
        )
        raise InputError(
            f"prev_chunk_left_over must be {expected}, got {came}; "
            "pass the unused rows of the last chunk's `.normalized`"
        )
    if value.shape[0] > chunk_size or not 0 < value.shape[1] <= max_action_dim:
        raise InputError(f"prev_chunk_left_over must be {expected}, got {list(value.shape)}")
    if not np.isfinite(value).all():
        raise InputError("prev_chunk_left_over holds NaN or infinity; pass finite actions")
    return np.ascontiguousarray(value)

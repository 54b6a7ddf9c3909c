"""Two ways of computing one policy, side by side: what each gives, and how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.errors import VerificationError
from smolvla_edge.export.bounds import IMAGE_TOKENS, KEYS_VALUES, NORMALIZED, ROBOT, STAGES

Arrays = Mapping[str, NDArray[np.float32]]
# What backends trace, by the stage it belongs to.
TRACED = {IMAGE_TOKENS: "out.connector.", KEYS_VALUES: "out.kv."}


@dataclass
class Found:
    """What one way gave: stage -> tensors by observation, in order."""

    stages: dict[str, list[Arrays]] = field(default_factory=lambda: {name: [] for name in STAGES})

    def keep(self, stage: str, tensors: Arrays) -> None:
        self.stages[stage].append({name: np.array(value) for name, value in tensors.items()})

    def keep_trace(self, recorded: Arrays) -> None:
        for stage, prefix in TRACED.items():
            found = {name: value for name, value in recorded.items() if name.startswith(prefix)}
            self.keep(stage, found)

    def actions(self) -> NDArray[np.float32]:
        """Robot units, [observations, rows, joints]."""
        return np.stack([np.stack([*columns.values()], 1) for columns in self.stages[ROBOT]])

    def keep_actions(self, normalized: NDArray[np.float32], actions: NDArray[np.float32]) -> None:
        self.keep(NORMALIZED, {NORMALIZED: normalized})
        self.keep(ROBOT, {f"action {i}": column for i, column in enumerate(actions.T)})


@dataclass(frozen=True)
class Apart:
    """How far two ways are apart at a stage. relative: of the largest magnitude, or a joint's range
    if that is more.  worst: tensor.
    decibels: None where nothing differs.  bound and floor: what they were held to, if anything."""

    stage: str
    relative: float
    decibels: float | None
    worst: str
    observations: int
    bound: float | None = None
    floor: float | None = None

    def check(self, what: str, bound: float | None = None, floor: float | None = None) -> Apart:
        """The same, with what it was held to. Raises VerificationError when it is not met."""
        if not math.isfinite(self.relative):
            self._refuse(what, "finite values", "NaN or infinity")
        if bound is not None and not self.relative <= bound:
            self._refuse(what, f"an error of at most {bound:.1e} of the largest magnitude",
                         f"{self.relative:.1e}")  # fmt: skip
        if floor is not None and self.decibels is not None and not self.decibels >= floor:
            self._refuse(what, f"at least {floor:g} dB of signal over error",
                         f"{self.decibels:.1f} dB")  # fmt: skip
        return Apart(self.stage, self.relative, self.decibels, self.worst, self.observations,
                     bound, floor)  # fmt: skip

    def _refuse(self, what: str, expected: str, came: str) -> None:
        raise VerificationError(
            f"verification of {what}: {self.stage}: expected {expected}, got {came} (worst in "
            f"{self.worst}). Nothing was kept; report it, with this line and the command"
        )

    def to_json(self) -> dict[str, Any]:
        decibels = None if self.decibels is None else round(self.decibels, 2)
        return {
            "stage": self.stage,
            "relative": float(f"{self.relative:.3g}"),
            "sqnr_db": decibels,
            "worst": self.worst,
            "observations": self.observations,
            "bound": self.bound,
            "floor_db": self.floor,
        }


def apart(got: Found, want: Found, stages: Sequence[str] = STAGES) -> list[Apart]:
    """Of every stage that both have. Raises VerificationError when tensors are missing."""
    rows = []
    for stage in stages:
        pairs = list(zip(got.stages[stage], want.stages[stage], strict=False))
        if pairs:
            rows.append(_apart(stage, pairs))
    return rows


def _apart(stage: str, pairs: Sequence[tuple[Arrays, Arrays]]) -> Apart:
    """A tensor of a name has one scale: its largest magnitude in all observations; a joint's is its
    range, if that is more."""
    error: dict[str, float] = {}
    scale: dict[str, float] = {}
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    signal = noise = 0.0
    for ours, theirs in pairs:
        # The reference records more than leaves the graphs, but never less.
        if not ours or not ours.keys() <= theirs.keys():
            raise VerificationError(
                f"verification: {stage}: expected some of {sorted(theirs)!r:.200}, got "
                f"{sorted(ours)!r:.200}; this is an error inside smolvla-edge"
            )
        for name, value in ours.items():
            if value.shape != theirs[name].shape:
                raise VerificationError(
                    f"verification: {stage}: {name}: expected {list(theirs[name].shape)}, got "
                    f"{list(value.shape)}; this is an error inside smolvla-edge"
                )
            wide = theirs[name].astype(np.float64)
            differs = value.astype(np.float64) - wide
            largest = float(np.abs(differs).max(initial=0.0))
            error[name] = max(error.get(name, 0.0), largest) if math.isfinite(largest) else math.nan
            scale[name] = max(scale.get(name, 0.0), float(np.abs(wide).max(initial=0.0)))
            low[name] = min(low.get(name, math.inf), float(wide.min(initial=math.inf)))
            high[name] = max(high.get(name, -math.inf), float(wide.max(initial=-math.inf)))
            signal += float((wide**2).sum())
            noise += float((differs**2).sum())
    if stage == ROBOT:
        scale = {name: max(size, high[name] - low[name]) for name, size in scale.items()}
    ratios = {name: _ratio(error[name], scale[name]) for name in error}
    worst = max(ratios, key=lambda name: math.inf if math.isnan(ratios[name]) else ratios[name])
    decibels = None
    # Joints have units of their own, and most have an offset: no ratio of their squares says much.
    if stage != ROBOT and math.isfinite(noise) and noise > 0 and signal > 0:
        decibels = 10 * math.log10(signal / noise)
    return Apart(stage, ratios[worst], decibels, worst, len(pairs))


def _ratio(error: float, scale: float) -> float:
    return error / scale if scale > 0 else (0.0 if error == 0 else math.inf)

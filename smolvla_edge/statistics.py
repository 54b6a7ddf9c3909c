"""Normalisation statistics of one feature: what they are, and what makes them unusable.

    mode        needs        model space            robot units
    MEAN_STD    mean, std    (x - mean)/(std + eps)       y*std + mean
    MIN_MAX     min, max     2(x - low)/(high - low) - 1  (y + 1)/2*(high - low) + low
    QUANTILES   q01, q99     as MIN_MAX
    QUANTILE10  q10, q90     as MIN_MAX
    IDENTITY    nothing      x                            y

Statistics that cannot be right are refused, never repaired. LeRobot runs on a zero std by dividing
by `std + 1e-8`: a joint that never moved in the dataset then turns a micrometre of encoder noise
into a hundred standard deviations, far outside anything the policy has seen. Whether that joint
should have std 1, another dataset's std or no place in the policy is the user's to say, with a
corrected `--stats` file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from smolvla_edge.errors import ContractError, SmolVLAEdgeError

DEFAULT_EPS = 1e-8  # LeRobot's, in every version

# How far from its statistics a state value may lie before the result carries a flag.
# No distribution has more than 1 % of its mass beyond 10 standard deviations (Chebyshev), and the
# usual mistakes are far larger: degrees for radians is a factor of 57, ticks for degrees of 11.
FAR_STANDARD_DEVIATIONS = 10.0
# A range holds all (or 98 or 80 %) of the training data: one more width on either side is no tail.
FAR_RANGE_WIDTHS = 1.0


class Mode(str, Enum):
    """A normalisation mode, under the name that LeRobot writes."""

    IDENTITY = "IDENTITY"
    MEAN_STD = "MEAN_STD"
    MIN_MAX = "MIN_MAX"
    QUANTILES = "QUANTILES"
    QUANTILE10 = "QUANTILE10"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the statistics this mode reads, in the order of its formula."""
        return _NEEDS[self]

    @property
    def is_range(self) -> bool:
        return self in (Mode.MIN_MAX, Mode.QUANTILES, Mode.QUANTILE10)


_NEEDS: dict[Mode, tuple[str, ...]] = {
    Mode.IDENTITY: (),
    Mode.MEAN_STD: ("mean", "std"),
    Mode.MIN_MAX: ("min", "max"),
    Mode.QUANTILES: ("q01", "q99"),
    Mode.QUANTILE10: ("q10", "q90"),
}


def parse_mode(value: object, where: str) -> Mode:
    """The Mode of that name. Raises ContractError naming `where` it stood."""
    try:
        return Mode(value)
    except ValueError:
        raise ContractError(
            f"{where}: expected a normalisation mode of {', '.join(mode.value for mode in Mode)}, "
            f"got {value!r}"
        ) from None


@dataclass(frozen=True)
class FeatureStatistics:
    """Checked statistics of one feature.

    `values` maps each of `mode.needs` to a tuple of `dim` floats (exactly float32 values).
    `eps_in_range` is the old layout's range formula, `(high - low) + eps`; LeRobot now uses eps
    only for a range of zero, which is refused here. `source` says where they were found.
    `unnormalized` is True when the mode is IDENTITY only because `allow_unnormalized` said so.
    """

    mode: Mode
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    eps: float = DEFAULT_EPS
    eps_in_range: bool = False
    source: str = ""
    unnormalized: bool = False

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean, std) or (low, high), float32 [dim]; two empty arrays for IDENTITY."""
        if self.mode is Mode.IDENTITY:
            return np.empty(0, np.float32), np.empty(0, np.float32)
        first, second = self.mode.needs
        return (
            np.asarray(self.values[first], np.float32),
            np.asarray(self.values[second], np.float32),
        )

    def to_engine(self) -> dict[str, Any]:
        """The dict that `_core.Engine` takes for one feature."""
        first, second = self.arrays()
        return {
            "mode": "RANGE" if self.mode.is_range else self.mode.value,
            "a": first,
            "b": second,
            "eps": float(self.eps),
            "eps_in_range": self.eps_in_range,
        }

    def far_outside(self, name: str, values: np.ndarray) -> tuple[str, ...]:
        """One sentence for each element of `values` (float32 [dim]) far outside the statistics."""
        if self.mode is Mode.IDENTITY:
            return ()
        first, second = (array.astype(np.float64) for array in self.arrays())
        if self.mode is Mode.MEAN_STD:
            distance = np.abs(values - first) / second
            limit, unit = FAR_STANDARD_DEVIATIONS, "standard deviations from its mean"
        else:
            below, above = first - values, values - second
            distance = np.maximum(below, above) / (second - first)
            limit, unit = FAR_RANGE_WIDTHS, "range widths outside its range"
        return tuple(
            f"{name}[{index}] = {values[index]:g} is {distance[index]:.3g} {unit} "
            f"({self.mode.needs[0]} {first[index]:g}, {self.mode.needs[1]} {second[index]:g}; "
            f"flagged beyond {limit:g}): check units and joint order"
            for index in np.flatnonzero(distance > limit)
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "mode": self.mode.value,
            "values": {name: list(values) for name, values in self.values.items()},
            "eps": self.eps,
            "eps_in_range": self.eps_in_range,
            "source": self.source,
            "unnormalized": self.unnormalized,
        }


def identity(source: str, *, unnormalized: bool = False) -> FeatureStatistics:
    return FeatureStatistics(Mode.IDENTITY, source=source, unnormalized=unnormalized)


def checked_statistics(
    feature: str,
    dim: int,
    mode: Mode,
    found: Mapping[str, np.ndarray],
    *,
    eps: float = DEFAULT_EPS,
    eps_in_range: bool = False,
    source: str,
) -> FeatureStatistics:
    """Statistics of `feature` from the arrays found, or ContractError saying what is wrong.

    `found` maps at least each of `mode.needs` to an array; more is ignored.
    """
    values: dict[str, tuple[float, ...]] = {}
    for stat in mode.needs:
        array = np.asarray(found[stat])
        where = f"{source}: {feature}.{stat}"
        if array.shape != (dim,):
            raise ContractError(
                f"{where}: expected {dim} values (the width of {feature!r}), got shape "
                f"{list(array.shape)}. {_ADVICE}"
            )
        if not np.isfinite(array).all():
            index = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ContractError(
                f"{where}: expected finite values, got {array[index]} at index {index} (infinity "
                f"means that the statistics were never filled in). {_ADVICE}"
            )
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float32)
        if not np.isfinite(narrow).all():
            raise ContractError(f"{where}: a value is too large for float32. {_ADVICE}")
        values[stat] = tuple(float(value) for value in narrow)
    statistics = FeatureStatistics(mode, values, eps, eps_in_range, source)
    _check_scale(feature, statistics)
    return statistics


_ADVICE = (
    "Pass --stats FILE (stats=FILE) with corrected statistics, for example the dataset's "
    "meta/stats.json, or --allow-unnormalized to run this feature without normalisation"
)


def _check_scale(feature: str, statistics: FeatureStatistics) -> None:
    """Refuse a scale that says nothing: zero, negative, or smaller than the eps beside it."""
    if statistics.mode is Mode.IDENTITY:
        return
    first, second = (array.astype(np.float64) for array in statistics.arrays())
    if statistics.mode is Mode.MEAN_STD:
        scale, what, was = second, "std", "a value that never changed in the dataset"
    else:
        low, high = statistics.mode.needs
        scale, what, was = second - first, f"{high} - {low}", "an empty or reversed range"
    bad = np.flatnonzero(scale <= statistics.eps)
    if bad.size:
        index = int(bad[0])
        raise ContractError(
            f"{statistics.source}: {feature} has {what} = {scale[index]:g} at index {index} "
            f"(indices {bad.tolist()}), expected more than eps = {statistics.eps:g}: {was}. "
            "LeRobot divides by it plus eps, which turns measurement noise into huge inputs. "
            f"{_ADVICE}"
        )


def statistics_from_json(
    data: object, feature: str, dim: int, error: type[SmolVLAEdgeError]
) -> FeatureStatistics:
    """The inverse of `to_json` for untrusted data: everything is checked again."""
    where = f"statistics of {feature!r}"
    keys = {"mode", "values", "eps", "eps_in_range", "source", "unnormalized"}
    if not isinstance(data, dict) or data.keys() != keys:
        raise error(f"{where}: expected an object of {sorted(keys)}, got {_shape_of(data)}")
    eps, values = data["eps"], data["values"]
    if type(eps) is not float or not 0 < eps <= 1e-3:
        raise error(f"{where}: expected eps as a number in (0, 1e-3], got {eps!r}")
    for name in ("eps_in_range", "unnormalized"):
        if not isinstance(data[name], bool):
            raise error(f"{where}: expected {name} as true or false, got {data[name]!r}")
    if not isinstance(data["source"], str):
        raise error(f"{where}: expected source as a string, got {data['source']!r}")
    try:
        mode = parse_mode(data["mode"], where)
        if not isinstance(values, dict) or values.keys() != set(mode.needs):
            raise ContractError(f"{where}: {mode.value} expects {list(mode.needs)} under 'values'")
        if mode is Mode.IDENTITY:
            return FeatureStatistics(
                mode, {}, eps, data["eps_in_range"], data["source"], data["unnormalized"]
            )
        if data["unnormalized"]:
            raise ContractError(f"{where}: 'unnormalized' contradicts mode {mode.value}")
        for name, numbers in values.items():
            if not isinstance(numbers, list) or not all(type(n) is float for n in numbers):
                raise ContractError(f"{where}: expected {name} as a list of decimal numbers")
        return checked_statistics(
            feature,
            dim,
            mode,
            {name: np.asarray(numbers, np.float64) for name, numbers in values.items()},
            eps=eps,
            eps_in_range=data["eps_in_range"],
            source=data["source"],
        )
    except ContractError as cause:
        raise error(str(cause)) from cause


def _shape_of(data: object) -> str:
    return f"one of {sorted(map(str, data))}" if isinstance(data, dict) else type(data).__name__

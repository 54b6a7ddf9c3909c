"""Scales of 4-bit groups by search: the largest weight of a group need not set its scale.

Clipping a few large weights lets most others come nearer. (HQQ's search, with a norm below 1, was
tried and did less: docs/dead-ends.md.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.codes import (
    MOST,
    CodeFormat,
    Codes,
    grouped,
    nearest_codes,
    round_to_nearest,
    stored_scales,
)

_SHRINK = np.linspace(1.0, 0.6, 17, dtype=np.float32)  # scales tried, of the largest magnitude's


def best_scales(
    group: NDArray[np.float32], importance: NDArray[np.float64], form: CodeFormat
) -> NDArray[np.float32]:
    """Of the scales tried for each row of a group [out, size], those of least squared error; errors
    weighed by `importance` [size]."""
    most = MOST[form.bits]
    least = -most - (form.bits == 4)
    largest = np.abs(group).max(axis=1)
    weights = importance.astype(np.float32)
    best = np.full(len(group), np.inf, np.float32)
    chosen = np.zeros(len(group), np.float32)
    for shrink in _SHRINK:
        scale = stored_scales(largest * shrink / most, form)
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        codes = np.clip(np.rint(group * inverse[:, None]), least, most)
        error = ((group - codes * scale[:, None]) ** 2 * weights).sum(axis=1)
        better = error < best
        best[better], chosen[better] = error[better], scale[better]
    return chosen


def least_squares(weight: NDArray[np.float32], form: CodeFormat) -> Codes:
    """The codes of float32 [out, in] that come nearest without data: 4 bits with searched scales,
    8 bits rounded. Raises QuantizationError for a weight with NaN or infinity."""
    codes = round_to_nearest(weight, form)
    if form.bits == 8:
        return codes
    groups = grouped(weight, form.group_size)
    alike = np.ones(groups.shape[2])
    scales = [best_scales(groups[:, i], alike, form) for i in range(groups.shape[1])]
    return nearest_codes(weight, np.stack(scales, axis=1), form)

"""GPTQ: codes that make a layer's output, not its weights, come nearest.

Frantar et al. 2022 (https://arxiv.org/abs/2210.17323): columns are rounded one after the other, and
what rounding a column loses is made up for by the columns that are not rounded yet, weighed by the
inverse of the Hessian X^T X of the layer's inputs X. Scales of a group are chosen when its first
column is reached, from the weights as they are by then.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.codes import MOST, CodeFormat, Codes
from smolvla_edge.compress.scales import best_scales
from smolvla_edge.errors import QuantizationError

BLOCK = 128  # columns between updates of everything to their right
DAMPING = 0.01  # of the mean of the Hessian's diagonal


def gptq(weight: NDArray[np.float32], form: CodeFormat, hessian: NDArray[np.float64]) -> Codes:
    """The codes of a weight [out, in] under a Hessian [in, in].

    Raises QuantizationError for weights or a Hessian with NaN or infinity, and for a Hessian of
    another size or without an inverse.
    """
    rows, columns = weight.shape
    if hessian.shape != (columns, columns):
        raise QuantizationError(f"expected a Hessian of {columns} inputs, got {hessian.shape}")
    if not (np.isfinite(weight).all() and np.isfinite(hessian).all()):
        raise QuantizationError("expected finite weights and inputs, got NaN or infinity")
    left = weight.astype(np.float32)
    importance = np.diag(hessian).copy()
    left[:, importance == 0] = 0  # an input that is never there
    upper = _inverse_factor(hessian, importance)
    size = form.group_size or columns
    least = -MOST[form.bits] - (form.bits == 4)
    codes = np.zeros((rows, columns), np.int8)
    scales = np.zeros((rows, form.groups(columns)), np.float32)
    for begin in range(0, columns, BLOCK):
        end = min(columns, begin + BLOCK)
        block = left[:, begin:end]
        errors = np.zeros_like(block)
        for k in range(begin, end):
            if k % size == 0:
                # A group lies within a block, or begins with the first: it has seen all errors.
                last = min(columns, k + size)
                scales[:, k // size] = best_scales(left[:, k:last], importance[k:last], form)
            scale = scales[:, k // size]
            inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
            column = block[:, k - begin]
            codes[:, k] = np.clip(np.rint(column * inverse), least, MOST[form.bits])
            error = (column - codes[:, k] * scale) / upper[k, k]
            errors[:, k - begin] = error
            block[:, k - begin + 1 :] -= np.outer(error, upper[k, k + 1 : end])
        left[:, end:] -= errors @ upper[begin:end, end:]
    return Codes(form, codes, scales)


def _inverse_factor(
    hessian: NDArray[np.float64], importance: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Upper U with U^T U = H^-1, of the damped Hessian."""
    damped = hessian.astype(np.float64)
    mean = float(importance.mean())
    if mean <= 0:
        raise QuantizationError("expected inputs that are not all zero")
    damped[np.diag_indices_from(damped)] += DAMPING * mean + (importance == 0) * mean
    try:
        inverse = np.linalg.inv(damped)
        factor = np.linalg.cholesky((inverse + inverse.T) / 2).T
    except np.linalg.LinAlgError as cause:
        raise QuantizationError(
            f"the Hessian has no inverse ({cause}): expected more or other calibration data"
        ) from cause
    return np.ascontiguousarray(factor, np.float32)

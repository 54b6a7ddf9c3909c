"""What is given to the graphs, checked before ONNX Runtime sees it. Raises InputError."""

from __future__ import annotations

from typing import Any

import numpy as np

from smolvla_edge.config import ModelConfig
from smolvla_edge.errors import InputError


def check_array(name: str, value: Any, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array, if it is of this dtype and shape (None: any size) and finite."""
    expected = f"{dtype} {['any' if n is None else n for n in shape]}"
    if not isinstance(value, np.ndarray):
        raise InputError(f"{name}: expected a numpy array {expected}, got {type(value).__name__}")
    fits = value.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(value.shape, shape, strict=True)
    )
    if value.dtype != dtype or not fits:
        raise InputError(f"{name}: expected {expected}, got {value.dtype} {list(value.shape)}")
    if dtype == "float32" and not np.isfinite(value).all():
        raise InputError(f"{name}: expected finite values, got NaN or infinity")
    return value


def valid_tokens(model: ModelConfig, tokens: Any, token_mask: Any) -> np.ndarray:
    """The tokens that count -> int64 [n]. Masked ones take no position: without them nothing
    moves."""
    tokens = check_array("tokens", tokens, "int64", (None,))
    if token_mask is not None:
        tokens = tokens[check_array("token_mask", token_mask, "bool", (len(tokens),))]
    if len(tokens) > model.tokenizer_max_length:
        raise InputError(
            f"tokens: expected at most {model.tokenizer_max_length} (tokenizer_max_length), got "
            f"{len(tokens)}; use a shorter task"
        )
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < model.vocab:
        raise InputError(
            f"tokens: expected ids from 0 to {model.vocab - 1}, got {tokens.min()} to "
            f"{tokens.max()}; use the policy's own tokenizer"
        )
    return tokens


def first_rows(noise: Any, rows: int, width: int) -> np.ndarray:
    """x at time 1 -> float32 [rows, width]."""
    noise = check_array("noise", noise, "float32", (None, width))
    if len(noise) < rows:
        raise InputError(f"noise: expected at least [{rows}, {width}], got {list(noise.shape)}")
    return noise[:rows]


def padded(array: np.ndarray, size: int | str) -> np.ndarray:
    """Rows of zeros behind the array, where a graph has been exported for a fixed `size`."""
    if isinstance(size, str) or len(array) >= size:
        return array
    rows = np.zeros((size - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate((array, rows))

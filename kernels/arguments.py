"""Checks of what callers pass, before anything is launched: kernels themselves check nothing."""

from __future__ import annotations

from collections.abc import Sequence

from smolvla_edge.errors import InputError
from smolvla_edge.kernels.launch import Tensor, torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
ACTIVATIONS = ("none", "gelu_tanh", "silu")


def check(
    name: str,
    x: Tensor,
    shape: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    device: torch.device | None = None,
) -> None:
    """That x has this shape (None: any size), one of these dtypes, and lies contiguous on `device`.

    Raises InputError that names what was expected and what came.
    """
    fits = x.dim() == len(shape)
    fits = fits and all(want in (None, have) for want, have in zip(shape, x.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"{name}: expected shape [{wanted}], got {list(x.shape)}")
    if x.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise InputError(f"{name}: expected {wanted}, got {str(x.dtype).removeprefix('torch.')}")
    if device is not None and x.device != device:
        raise InputError(f"{name}: expected a tensor on {device}, got {x.device}")
    if not x.is_contiguous():
        raise InputError(
            f"{name}: expected a contiguous tensor, got strides {list(x.stride())} of "
            f"{list(x.shape)}; call .contiguous()"
        )


def check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise InputError(
            f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        )


def output(out: Tensor | None, shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
    """`out`, checked, or a new tensor beside `like`. Its contents are overwritten, never read."""
    if out is None:
        return torch.empty(shape, dtype=dtype, device=like.device)
    check("out", out, shape, (dtype,), like.device)
    return out


def flat_rows(x: Tensor) -> Tensor:
    """[..., width] -> [rows, width]. Raises InputError where that would be a copy."""
    if x.dim() < 2:
        raise InputError(f"x: expected at least 2 dimensions, got shape {list(x.shape)}")
    check("x", x, x.shape, FLOATS)
    return x.view(-1, x.shape[-1])

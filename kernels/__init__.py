"""Triton kernels for SmolVLA's shapes on NVIDIA GPUs: one operation a file. See README.md.

    from smolvla_edge.kernels.linear_w4a16 import linear_w4a16

Importing this package needs nothing; a file with a kernel in it needs torch and Triton (extra
`triton`) and says so in a MissingExtraError. Each operation is a torch custom op, computes CPU
tensors with the plain-torch reference that stands beside its kernel, and takes `use=`:

    "auto"    Triton for tensors on a CUDA device, torch for tensors on the CPU
    "triton"  the kernel; on CPU tensors only under Triton's interpreter (TRITON_INTERPRET=1)
    "torch"   the reference, wherever the tensors are
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

_PLAIN: ContextVar[bool] = ContextVar("smolvla_edge_plain_torch", default=False)


def available() -> bool:
    """Whether the kernels can be imported here; whether there is a GPU is another question."""
    return find_spec("torch") is not None and find_spec("triton") is not None


@contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, the torch model computes without these kernels, on any device."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def replace_torch(x: Any) -> bool:
    """Whether the torch model should hand work on tensor `x` to the kernels.

    On a CUDA device, where Triton is installed, outside `plain_torch`, and where nobody asks for
    gradients: the kernels have no backward pass.
    """
    if not x.is_cuda:
        return False
    import torch

    return not torch.is_grad_enabled() and not _PLAIN.get() and available()

"""What the operations share: how one is launched, registered with torch, and told what to use.

A `Launch` is everything that a kernel is started with. Made of tensors on a GPU it runs; made of
tensors on torch's "meta" device it describes a compilation (cubin.py): what is tested and shipped
ahead of time is what runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from smolvla_edge.errors import BackendError, InputError, MissingExtraError

try:
    import torch
    import triton
    import triton.language as tl
    from torch import Tensor
except ImportError as error:
    raise MissingExtraError(
        "smolvla_edge.kernels needs PyTorch (2.4 or newer) and Triton, and one of them is not "
        "installed; run: pip install 'smolvla-edge[triton]'"
    ) from error

# The operations import torch and triton from here: whichever is missing, the error above says so.
__all__ = ["INTERPRETED", "Launch", "Tensor", "operator", "runs_triton", "tl", "torch", "triton"]

USES = ("auto", "triton", "torch")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton read it when it was imported


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments by parameter name, and what it is compiled with.

    arguments: tensors, ints, floats, or None for an operand that is left out; constants: the
    `tl.constexpr` ones. fuse: whether the compiler may turn a multiply and an add into one fma;
    False where the result must have the bits that torch or numpy gives.
    """

    name: str
    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    fuse: bool = True

    @property
    def options(self) -> dict[str, Any]:
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": self.fuse,
        }

    def run(self) -> None:
        first = next(x for x in self.arguments.values() if isinstance(x, torch.Tensor))
        # Triton launches on the current device, which need not be the tensors' own.
        with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options)


def operator(schema: str) -> Callable[[Callable[..., None]], Any]:
    """Register a function as torch.ops.smolvla_edge.NAME. schema: "NAME(Tensor x, ...) -> ()".

    Every operator writes into tensors that its caller made, marked (a!) in the schema, and returns
    nothing: under torch.compile there is no result whose shape is left to infer.
    """
    name, signature = schema.split("(", 1)
    written = re.findall(r"!\) (\w+)", signature)

    def register(function: Callable[..., None]) -> Any:
        op = torch.library.custom_op(
            f"smolvla_edge::{name}", function, mutates_args=written, schema="(" + signature
        )
        op.register_fake(lambda *_: None)
        return op

    return register


def runs_triton(x: torch.Tensor, use: str) -> bool:
    """Whether the kernel computes, and not torch. Raises InputError, BackendError."""
    if use not in USES:
        raise InputError(f"use: expected one of {', '.join(USES)}, got {use!r}")
    if use == "auto":
        return x.is_cuda
    if use == "triton" and not x.is_cuda:
        if not INTERPRETED:
            raise BackendError(
                f"use='triton': expected tensors on a CUDA device, got {x.device}; use='torch' "
                "computes there"
            )
        if x.dtype == torch.bfloat16:
            # It stores bfloat16 as integers and multiplies those: wrong by 1e9, without a word.
            raise BackendError(
                "use='triton': Triton's interpreter multiplies bfloat16 wrongly; expected float16 "
                "or float32"
            )
    return use == "triton"

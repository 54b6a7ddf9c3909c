"""What every operator does around the C++ core: whose stream, who makes results, which error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from smolvla_edge.backends.native import load_core
from smolvla_edge.errors import BackendError, InputError

Array = Any  # with __dlpack__ or __cuda_array_interface__
Stream = Any


def available() -> bool:
    """Whether this build has the CUDA kernels; whether there is a GPU is another question."""
    return hasattr(load_core(), "cuda_ops")


def operators() -> Any:
    """The operators of the C++ core. Raises BackendError where it was built without CUDA."""
    core = load_core()
    if not hasattr(core, "cuda_ops"):
        raise BackendError(
            "smolvla_edge.ops: expected a build with CUDA kernels, got one without. Build it where "
            "nvcc is: pip install . -C cmake.define.SMOLVLA_CUDA=ON"
        )
    return core.cuda_ops


def call(operator: str, first: Array, stream: Stream, /, **arguments: Any) -> Any:
    """Runs one operator on `stream`, or on the current stream of the library of `first`."""
    function = getattr(operators(), operator)
    caller = Caller(first, stream)
    with caller.device():
        return function(**_without_gradients(arguments), caller=caller)


class Caller:
    """The side of a call that the core cannot know: csrc/bindings/cuda_call.h."""

    def __init__(self, first: Array, stream: Stream) -> None:
        self._first = first
        self._torch, self._cupy = _torch_of(first), _cupy_of(first)
        self._given = stream is not None
        # The class of arrays that need no waiting: the stream is the one they are worked on.
        self.same_stream: Any = None
        if stream is not None:
            self.stream = _pointer(stream)
        elif self._torch is not None and first.is_cuda:
            self.stream = self._torch.cuda.current_stream(first.device).cuda_stream
            self.same_stream = self._torch.Tensor
        elif self._cupy is not None:
            self.stream = self._cupy.cuda.get_current_stream().ptr
            self.same_stream = self._cupy.ndarray
        else:
            self.stream = 0

    def device(self) -> ExitStack:
        """torch hands out tensors of its current device alone."""
        stack = ExitStack()
        if self._torch is not None and self._first.is_cuda:
            cuda = self._torch.cuda
            if self._first.device.index != cuda.current_device():
                stack.enter_context(cuda.device(self._first.device))
        return stack

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        """A new array, of the library of the first one, for use on this stream."""
        return self._make("empty", shape, dtype)

    def full(self, shape: Sequence[int], value: int) -> Array:
        return self._make("full", shape, "int32", value)

    def _make(self, function: str, shape: Sequence[int], dtype: str, *value: int) -> Array:
        with self.device() as stack:
            if self._torch is not None and self._first.is_cuda:
                torch, device = self._torch, self._first.device
                if self._given:
                    own = torch.cuda.ExternalStream(self.stream, device=device)
                    stack.enter_context(torch.cuda.stream(own))
                make = getattr(torch, function)
                return make(tuple(shape), *value, dtype=getattr(torch, dtype), device=device)
            if self._cupy is not None and dtype != "bfloat16":
                cupy = self._cupy
                stack.enter_context(self._first.device)
                if self._given:
                    stack.enter_context(cupy.cuda.ExternalStream(self.stream))
                return getattr(cupy, function)(tuple(shape), *value, dtype=dtype)
        what = "lengths" if function == "full" else "out"
        raise InputError(
            f"{what}: expected {dtype} {list(shape)} in GPU memory; it can be made for arrays of "
            "torch on a GPU, and of CuPy but for bfloat16. Pass one"
        )


def _torch_of(x: Array) -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, torch.Tensor) else None


def _cupy_of(x: Array) -> Any:
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else None


def _without_gradients(arguments: dict[str, Any]) -> dict[str, Any]:
    plain = dict(arguments)
    for name, x in arguments.items():
        if isinstance(x, dict):
            plain[name] = _without_gradients(x)
            continue
        torch = _torch_of(x)
        if torch is None or not x.requires_grad:
            continue
        if torch.is_grad_enabled():
            raise InputError(
                f"{name}: expected a tensor without a gradient, got one that requires it: the "
                "kernels have no backward pass. Call inside torch.no_grad(), or pass .detach()"
            )
        plain[name] = x.detach()
    return plain


def _pointer(stream: Stream) -> int:
    """torch: .cuda_stream, CuPy: .ptr, CUDA Python: __cuda_stream__() -> (version, pointer)."""
    if hasattr(stream, "__cuda_stream__"):
        found = stream.__cuda_stream__
        stream = (found() if callable(found) else found)[1]
    for attribute in ("cuda_stream", "ptr"):
        stream = getattr(stream, attribute, stream)
    if isinstance(stream, bool) or not isinstance(stream, int) or stream < 0:
        raise InputError(
            "stream: expected None, a stream of torch, CuPy or CUDA Python, or its address, got "
            f"{stream!r}"
        )
    return stream

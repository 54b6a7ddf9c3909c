"""What the linear kernels do to an accumulator before they store it, and torch's version of it."""

from __future__ import annotations

from smolvla_edge.kernels.launch import Tensor, tl, torch, triton


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """x float32 -> float32."""
    if ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu_tanh":
        # x (1 + tanh u) / 2 = x sigmoid(2 u): there is no tanh that all targets share.
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return x


def finish(x: Tensor, bias: Tensor | None, activation: str, residual: Tensor | None) -> Tensor:
    """activation(x + bias) + residual, x [rows, out] float32 or wider."""
    if bias is not None:
        x = x + bias.to(x.dtype)
    if activation == "silu":
        x = torch.nn.functional.silu(x)
    elif activation == "gelu_tanh":
        x = torch.nn.functional.gelu(x, approximate="tanh")
    return x if residual is None else x + residual.to(x.dtype)

"""x <- x + dt * v, with v first guided towards what is left of the last chunk (real-time chunking).

    v <- v - gain * (previous - (x - t v)) * weight[row],   x <- x + dt v

Regime: 50 x 32 values between two steps of the expert: one launch in place of seven, no arithmetic
to speak of.

Numerics: float32 in the order that model/flow.py has, fma forbidden: the bits of plain torch.

Unrun on a GPU: none was at hand.
"""

from __future__ import annotations

from smolvla_edge.errors import InputError
from smolvla_edge.kernels.arguments import check, output
from smolvla_edge.kernels.launch import Launch, Tensor, operator, runs_triton, tl, torch, triton
from smolvla_edge.kernels.tiles import cdiv, tile_for


@triton.jit(do_not_specialize=["count", "rows", "dims", "dt", "t", "gain"])
def _flow_step(
    x, v, previous, weights, out, count, rows, dims, dt, t, gain, BLOCK: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    now = tl.load(x + i, mask=inside, other=0.0)
    velocity = tl.load(v + i, mask=inside, other=0.0)
    if previous is not None:
        row = i // dims % rows  # the guidance is the same for every chunk of a batch
        target = tl.load(previous + i % (rows * dims), mask=inside, other=0.0)
        weight = tl.load(weights + row, mask=inside, other=0.0)
        velocity -= gain * ((target - (now - t * velocity)) * weight)
    tl.store(out + i, now + dt * velocity, mask=inside)


def launch(
    x: Tensor,
    v: Tensor,
    previous: Tensor | None,
    weights: Tensor | None,
    dt: float,
    t: float,
    gain: float,
    out: Tensor,
    tile: dict[str, int] | None = None,
) -> Launch:
    rows, dims = x.shape[-2:]
    tile = tile or tile_for("flow_step", (rows, dims), x)
    return Launch(
        "flow_step",
        _flow_step,
        (cdiv(x.numel(), tile["BLOCK"]), 1, 1),
        {"x": x, "v": v, "previous": previous, "weights": weights, "out": out, "count": x.numel(),
         "rows": rows, "dims": dims, "dt": dt, "t": t, "gain": gain},
        {"BLOCK": tile["BLOCK"]},
        tile["num_warps"],
        tile["num_stages"],
        fuse=False,
    )  # fmt: skip


def reference(
    x: Tensor,
    v: Tensor,
    previous: Tensor | None,
    weights: Tensor | None,
    dt: float,
    t: float,
    gain: float,
) -> Tensor:
    if previous is not None and weights is not None:
        v = v - gain * ((previous - (x - t * v)) * weights[:, None])
    return x + dt * v


@operator(
    "flow_step(Tensor x, Tensor v, Tensor? previous, Tensor? weights, float dt, float t, "
    "float gain, Tensor(a!) out, bool triton) -> ()"
)
def _flow_step_op(
    x: Tensor,
    v: Tensor,
    previous: Tensor | None,
    weights: Tensor | None,
    dt: float,
    t: float,
    gain: float,
    out: Tensor,
    triton: bool,
) -> None:
    given = (x, v, previous, weights, dt, t, gain)
    if triton:
        launch(*given, out).run()
    else:
        out.copy_(reference(*given))


def flow_step(
    x: Tensor,
    v: Tensor,
    *,
    dt: float,
    t: float = 0.0,
    previous: Tensor | None = None,
    weights: Tensor | None = None,
    gain: float = 0.0,
    out: Tensor | None = None,
    use: str = "auto",
) -> Tensor:
    """One Euler step of the flow: x and v float32 [..., rows, dims] -> as x.

    With guidance: previous float32 [rows, dims], zero-padded, the same for a whole batch; weights
    float32 [rows] in [0, 1]; gain, the factor of the whole pull; t, the time before the step (1:
    noise). `out` is written and returned, and may be x or v itself. All contiguous and on one
    device. `use`: see the package.

    Raises InputError for arguments that do not fit, BackendError for a `use` that cannot be had.
    Source: model/flow.py (guide, integrate); csrc/ops/ops.h (flow_update).
    """
    only = (torch.float32,)
    if x.dim() < 2:
        raise InputError(f"x: expected shape [..., rows, dims], got {list(x.shape)}")
    check("x", x, x.shape, only)
    check("v", v, x.shape, only, x.device)
    if (previous is None) != (weights is None):
        raise InputError("previous and weights: expected both or neither, got one of them")
    if previous is not None and weights is not None:
        check("previous", previous, x.shape[-2:], only, x.device)
        check("weights", weights, x.shape[-2:-1], only, x.device)
    out = output(out, x.shape, torch.float32, x)
    torch.ops.smolvla_edge.flow_step(x, v, previous, weights, dt, t, gain, out, runs_triton(x, use))
    return out

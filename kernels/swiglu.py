"""h = silu(x Wg^T) * (x Wu^T), [rows, in] -> [rows, inner]: the first half of a SwiGLU block.

Both products share the tiles of x, and the inner activations are written once instead of three
times. Regime: the expert's 50 x 720 -> 2048 and the prefix's 75..241 x 960 -> 2560, float weights.

Numerics: both sums in float32, silu and the product of the two in float32, one rounding at the
store (the plain layers round gate, silu and up to the dtype of x first).

Unmeasured: no GPU was at hand.
"""

from __future__ import annotations

from smolvla_edge.kernels.arguments import check, flat_rows, output
from smolvla_edge.kernels.epilogue import activate
from smolvla_edge.kernels.launch import Launch, Tensor, operator, runs_triton, tl, torch, triton
from smolvla_edge.kernels.tiles import cdiv, tile_for


@triton.jit(do_not_specialize=["rows"])
def _swiglu(
    x, gate, up, out, rows,
    DEPTH: tl.constexpr, OUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    gated = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    linear = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, DEPTH, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tokens = tl.load(
            x + m[:, None] * DEPTH + k[None, :],
            mask=(m < rows)[:, None] & (k < DEPTH)[None, :],
            other=0.0,
        )
        at = n[None, :] * DEPTH + k[:, None]
        inside = (n < OUT)[None, :] & (k < DEPTH)[:, None]
        gated = tl.dot(
            tokens, tl.load(gate + at, mask=inside, other=0.0), gated, input_precision="ieee"
        )
        linear = tl.dot(
            tokens, tl.load(up + at, mask=inside, other=0.0), linear, input_precision="ieee"
        )
    hidden = activate(gated, "silu") * linear
    inside = (m < rows)[:, None] & (n < OUT)[None, :]
    tl.store(out + m[:, None] * OUT + n[None, :], hidden.to(out.dtype.element_ty), mask=inside)


def launch(
    x: Tensor, gate: Tensor, up: Tensor, out: Tensor, tile: dict[str, int] | None = None
) -> Launch:
    rows, depth, columns = x.shape[0], x.shape[1], gate.shape[0]
    tile = tile or tile_for("swiglu", (rows, depth, columns), x)
    return Launch(
        "swiglu",
        _swiglu,
        (cdiv(columns, tile["BLOCK_N"]), cdiv(rows, tile["BLOCK_M"]), 1),
        {"x": x, "gate": gate, "up": up, "out": out, "rows": rows},
        {"DEPTH": depth, "OUT": columns,
         "BLOCK_M": tile["BLOCK_M"], "BLOCK_N": tile["BLOCK_N"], "BLOCK_K": tile["BLOCK_K"]},
        tile["num_warps"],
        tile["num_stages"],
    )  # fmt: skip


def reference(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    wide = x.float()
    return torch.nn.functional.silu(wide @ gate.float().T) * (wide @ up.float().T)


@operator("swiglu(Tensor x, Tensor gate, Tensor up, Tensor(a!) out, bool triton) -> ()")
def _swiglu_op(x: Tensor, gate: Tensor, up: Tensor, out: Tensor, triton: bool) -> None:
    if triton:
        launch(x, gate, up, out).run()
    else:
        out.copy_(reference(x, gate, up))


def swiglu(
    x: Tensor, gate: Tensor, up: Tensor, *, out: Tensor | None = None, use: str = "auto"
) -> Tensor:
    """silu(x gate^T) * (x up^T): x [..., in] -> [..., inner] in x's dtype.

    x float16, bfloat16 or float32; gate and up [inner, in] of x's dtype. `out` is written and
    returned; it may not overlap an input. All contiguous and on one device. `use`: see the package.

    Raises InputError for arguments that do not fit, BackendError for a `use` that cannot be had.
    Source: model/layers.py (SwiGLU).
    """
    flat = flat_rows(x)
    rows, depth = flat.shape
    check("gate", gate, (None, depth), (x.dtype,), x.device)
    columns = gate.shape[0]
    check("up", up, (columns, depth), (x.dtype,), x.device)
    out = output(out, (*x.shape[:-1], columns), x.dtype, x)
    torch.ops.smolvla_edge.swiglu(flat, gate, up, out.view(rows, columns), runs_triton(x, use))
    return out

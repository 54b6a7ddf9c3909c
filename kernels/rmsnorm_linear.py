"""y = RMSNorm(x) W^T + bias in one pass over x, [rows, in] -> [rows, out].

    r_i = 1 / sqrt(mean_k x_ik^2 + eps),   y_ij = r_i * sum_k (x_ik gamma_k) W_jk + bias_j

The row factor commutes with the sum over k, so it is applied to the accumulator after the loop; the
squares are summed from the tiles of x that the product reads anyway. No normalised x is written.

Regime: the expert's and the prefix's projections after a norm (50..241 rows, 720 or 960 inputs),
float weights. Each block of columns computes the row factors anew: 0.1 % of its products.

Numerics: x * gamma is rounded to x's dtype (where RMSNorm itself rounds twice), products and
squares are summed in float32. In float16 x * gamma must stay under 65504. gamma None: folded into
W.

Unmeasured: no GPU was at hand.
"""

from __future__ import annotations

from smolvla_edge.kernels.arguments import FLOATS, check, flat_rows, output
from smolvla_edge.kernels.launch import Launch, Tensor, operator, runs_triton, tl, torch, triton
from smolvla_edge.kernels.tiles import cdiv, tile_for


@triton.jit(do_not_specialize=["rows", "eps"])
def _rmsnorm_linear(
    x, gamma, weight, bias, out, rows, eps,
    DEPTH: tl.constexpr, OUT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, DEPTH, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tokens = tl.load(
            x + m[:, None] * DEPTH + k[None, :],
            mask=(m < rows)[:, None] & (k < DEPTH)[None, :],
            other=0.0,
        )
        columns = tl.load(
            weight + n[None, :] * DEPTH + k[:, None],
            mask=(n < OUT)[None, :] & (k < DEPTH)[:, None],
            other=0.0,
        )
        wide = tokens.to(tl.float32)
        squares += tl.sum(wide * wide, axis=1)
        if gamma is not None:
            factor = tl.load(gamma + k, mask=k < DEPTH, other=0.0).to(tl.float32)
            tokens = (wide * factor[None, :]).to(tokens.dtype)
        acc = tl.dot(tokens, columns, acc, input_precision="ieee")
    acc *= tl.rsqrt(squares / DEPTH + eps)[:, None]
    if bias is not None:
        acc += tl.load(bias + n, mask=n < OUT, other=0.0).to(tl.float32)[None, :]
    inside = (m < rows)[:, None] & (n < OUT)[None, :]
    tl.store(out + m[:, None] * OUT + n[None, :], acc.to(out.dtype.element_ty), mask=inside)


def launch(
    x: Tensor,
    gamma: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    out: Tensor,
    tile: dict[str, int] | None = None,
) -> Launch:
    rows, depth, columns = x.shape[0], x.shape[1], weight.shape[0]
    tile = tile or tile_for("rmsnorm_linear", (rows, depth, columns), x)
    return Launch(
        "rmsnorm_linear",
        _rmsnorm_linear,
        (cdiv(columns, tile["BLOCK_N"]), cdiv(rows, tile["BLOCK_M"]), 1),
        {"x": x, "gamma": gamma, "weight": weight, "bias": bias, "out": out, "rows": rows,
         "eps": eps},
        {"DEPTH": depth, "OUT": columns,
         "BLOCK_M": tile["BLOCK_M"], "BLOCK_N": tile["BLOCK_N"], "BLOCK_K": tile["BLOCK_K"]},
        tile["num_warps"],
        tile["num_stages"],
    )  # fmt: skip


def reference(
    x: Tensor, gamma: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if gamma is not None:
        normed = normed * gamma.float()
    y = normed @ weight.float().T
    return y if bias is None else y + bias.float()


@operator(
    "rmsnorm_linear(Tensor x, Tensor? gamma, Tensor weight, Tensor? bias, float eps, "
    "Tensor(a!) out, bool triton) -> ()"
)
def _rmsnorm_linear_op(
    x: Tensor,
    gamma: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    out: Tensor,
    triton: bool,
) -> None:
    if triton:
        launch(x, gamma, weight, bias, eps, out).run()
    else:
        out.copy_(reference(x, gamma, weight, bias, eps))


def rmsnorm_linear(
    x: Tensor,
    gamma: Tensor | None,
    weight: Tensor,
    *,
    eps: float,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    use: str = "auto",
) -> Tensor:
    """RMSNorm and the linear layer after it: x [..., in] -> [..., out] in x's dtype.

    x float16, bfloat16 or float32; weight [out, in] of x's dtype; gamma [in] (None: all ones, or
    folded into the weight) and bias [out] of any float dtype; eps is added to the mean square.
    `out` is written and returned; it may not overlap an input. All contiguous and on one device.
    `use`: see the package.

    Raises InputError for arguments that do not fit, BackendError for a `use` that cannot be had.
    Source: the row factor after the loop is https://github.com/Dexmal/realtime-vla's.
    """
    flat = flat_rows(x)
    rows, depth = flat.shape
    check("weight", weight, (None, depth), (x.dtype,), x.device)
    columns = weight.shape[0]
    if gamma is not None:
        check("gamma", gamma, (depth,), FLOATS, x.device)
    if bias is not None:
        check("bias", bias, (columns,), FLOATS, x.device)
    out = output(out, (*x.shape[:-1], columns), x.dtype, x)
    torch.ops.smolvla_edge.rmsnorm_linear(
        flat, gamma, weight, bias, eps, out.view(rows, columns), runs_triton(x, use)
    )
    return out

"""y = activation(row_scale * weight_scale * (X W^T) + bias) + residual, X and W int8 integers.

Regime: vision's 1024 rows a camera and the prefix's 75..241: bound by arithmetic, of which int8 has
twice the rate of float16.

Layout, the bundle's own (codes.py): weights int8 [out, in], one float32 scale an output; rows int8
[rows, in] and one float32 scale a row, as `round_rows` makes them while running.

Numerics: sums are int32 and exact (127 x 127 x 65536 < 2^31, the longest row a bundle may have);
the result is rounded by the two scales, the epilogue and the store only. `round_rows` gives the
bits of codes.round_rows: true divisions, no fma, ties to even.

Unmeasured: no GPU was at hand.
"""

from __future__ import annotations

from smolvla_edge.codes import MAX_CODES
from smolvla_edge.errors import InputError
from smolvla_edge.kernels.arguments import FLOATS, check, check_activation, flat_rows, output
from smolvla_edge.kernels.epilogue import activate, finish
from smolvla_edge.kernels.launch import Launch, Tensor, operator, runs_triton, tl, torch, triton
from smolvla_edge.kernels.tiles import cdiv, power_of_two, tile_for


@triton.jit(do_not_specialize=["rows"])
def _linear_w8a8(
    x, x_scales, codes, scales, bias, residual, out, rows,
    DEPTH: tl.constexpr, OUT: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, DEPTH, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tokens = tl.load(
            x + m[:, None] * DEPTH + k[None, :],
            mask=(m < rows)[:, None] & (k < DEPTH)[None, :],
            other=0,
        )
        weight = tl.load(
            codes + n[None, :] * DEPTH + k[:, None],
            mask=(n < OUT)[None, :] & (k < DEPTH)[:, None],
            other=0,
        )
        acc = tl.dot(tokens, weight, acc, out_dtype=tl.int32)
    row_scale = tl.load(x_scales + m, mask=m < rows, other=0.0)
    scale = tl.load(scales + n, mask=n < OUT, other=0.0)
    y = acc.to(tl.float32) * row_scale[:, None] * scale[None, :]
    if bias is not None:
        y += tl.load(bias + n, mask=n < OUT, other=0.0).to(tl.float32)[None, :]
    y = activate(y, ACTIVATION)
    at = m[:, None] * OUT + n[None, :]
    inside = (m < rows)[:, None] & (n < OUT)[None, :]
    if residual is not None:
        y += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _round_rows(x, factors, out, scales, DEPTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    values = tl.load(x + row * DEPTH + k, mask=k < DEPTH, other=0.0).to(tl.float32)
    if factors is not None:
        values *= tl.load(factors + k, mask=k < DEPTH, other=0.0)
    largest = tl.max(tl.abs(values), axis=0)
    fault = tl.sum(values * 0.0, axis=0)  # 0, or NaN where a value is not finite
    # 2^-100: below, 127 / largest would overflow.
    live = (fault == 0.0) & (largest >= 7.888609052210118e-31)
    inverse = tl.where(live, tl.div_rn(127.0, tl.where(live, largest, 1.0)), 0.0)
    # Adding 1.5 * 2^23 leaves no bits for a fraction: the sum is rounded to even, as rint does.
    # The launch forbids fma, which would not round the product first.
    whole = (values * inverse + 12582912.0) - 12582912.0
    tl.store(out + row * DEPTH + k, tl.where(live, whole, 0.0).to(tl.int8), mask=k < DEPTH)
    tl.store(scales + row, tl.where(live, tl.div_rn(largest, 127.0), fault))


def launch(
    x: Tensor,
    x_scales: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    out: Tensor,
    tile: dict[str, int] | None = None,
) -> Launch:
    rows, depth, columns = x.shape[0], x.shape[1], codes.shape[0]
    tile = tile or tile_for("linear_w8a8", (rows, depth, columns), x)
    return Launch(
        "linear_w8a8",
        _linear_w8a8,
        (cdiv(columns, tile["BLOCK_N"]), cdiv(rows, tile["BLOCK_M"]), 1),
        {"x": x, "x_scales": x_scales, "codes": codes, "scales": scales, "bias": bias,
         "residual": residual, "out": out, "rows": rows},
        {"DEPTH": depth, "OUT": columns, "ACTIVATION": activation,
         "BLOCK_M": tile["BLOCK_M"], "BLOCK_N": tile["BLOCK_N"], "BLOCK_K": tile["BLOCK_K"]},
        tile["num_warps"],
        tile["num_stages"],
    )  # fmt: skip


def launch_round_rows(
    x: Tensor,
    factors: Tensor | None,
    out: Tensor,
    scales: Tensor,
    tile: dict[str, int] | None = None,
) -> Launch:
    rows, depth = x.shape
    tile = tile or tile_for("round_rows", (rows, depth), x)
    return Launch(
        "round_rows",
        _round_rows,
        (rows, 1, 1),
        {"x": x, "factors": factors, "out": out, "scales": scales},
        {"DEPTH": depth, "BLOCK": power_of_two(depth)},
        tile["num_warps"],
        tile["num_stages"],
        fuse=False,
    )


def reference(
    x: Tensor,
    x_scales: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> Tensor:
    # In float64 the sums are the integers themselves, and every device multiplies it.
    y = (x.double() @ codes.double().T).float() * x_scales[:, None] * scales
    return finish(y, bias, activation, residual)


def reference_round_rows(x: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = x.float() if factors is None else x.float() * factors
    largest = wide.abs().amax(1)
    live = largest.isfinite() & (largest >= 2.0**-100)
    # Of a number and a tensor torch makes a product with a reciprocal, which rounds twice.
    most = torch.full_like(largest, 127)
    inverse = torch.where(live, most / largest, 0)
    codes = torch.where(live[:, None], wide * inverse[:, None], 0).round().to(torch.int8)
    return codes, torch.where(live, largest / most, largest * 0)


@operator(
    "linear_w8a8(Tensor x, Tensor x_scales, Tensor codes, Tensor scales, Tensor? bias, "
    "str activation, Tensor? residual, Tensor(a!) out, bool triton) -> ()"
)
def _linear_w8a8_op(
    x: Tensor,
    x_scales: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    out: Tensor,
    triton: bool,
) -> None:
    given = (x, x_scales, codes, scales, bias, activation, residual)
    if triton:
        launch(*given, out).run()
    else:
        out.copy_(reference(*given))


@operator(
    "round_rows(Tensor x, Tensor? factors, Tensor(a!) out, Tensor(b!) scales, bool triton) -> ()"
)
def _round_rows_op(
    x: Tensor, factors: Tensor | None, out: Tensor, scales: Tensor, triton: bool
) -> None:
    if triton:
        launch_round_rows(x, factors, out, scales).run()
    else:
        rounded, of_rows = reference_round_rows(x, factors)
        out.copy_(rounded)
        scales.copy_(of_rows)


def round_rows(
    x: Tensor, *, factors: Tensor | None = None, use: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Each row to int8 by a scale of its own: x [..., in] -> (int8 [..., in], float32 [rows]).

    x float16, bfloat16 or float32, finite; factors float32 [in] are multiplied in first (a
    weight's input scales). A row below 2^-100 becomes zeros under a scale of 0. The bits are those
    of codes.round_rows. Raises as `linear_w8a8`.
    """
    flat = flat_rows(x)
    rows, depth = flat.shape
    if depth > MAX_CODES:
        raise InputError(f"x: expected rows of at most {MAX_CODES} values, got {depth}")
    if factors is not None:
        check("factors", factors, (depth,), (torch.float32,), x.device)
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    torch.ops.smolvla_edge.round_rows(
        flat, factors, out.view(rows, depth), scales, runs_triton(x, use)
    )
    return out, scales


def linear_w8a8(
    x: Tensor,
    x_scales: Tensor,
    codes: Tensor,
    scales: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
    out: Tensor | None = None,
    use: str = "auto",
) -> Tensor:
    """A linear layer of integers: x int8 [..., in] -> [..., out] of `dtype`.

    x and x_scales float32 [rows] as `round_rows` gives them; codes int8 [out, in] and scales
    float32 [out] as codes.py stores them; bias [out] and residual [..., out] of any float dtype;
    activation "none", "gelu_tanh" or "silu". `out` is written and returned; it may not overlap an
    input. All contiguous and on one device. `use`: see the package.

    Raises InputError for arguments that do not fit, BackendError for a `use` that cannot be had.
    Source of the format: smolvla_edge/codes.py.
    """
    check("x", x, x.shape, (torch.int8,))
    check("codes", codes, (None, x.shape[-1]), (torch.int8,), x.device)
    columns, depth = codes.shape
    flat = x.view(-1, depth)
    rows = flat.shape[0]
    if depth > MAX_CODES:
        raise InputError(f"x: expected rows of at most {MAX_CODES} codes, got {depth}")
    if dtype not in FLOATS:
        raise InputError(f"dtype: expected one of {FLOATS}, got {dtype}")
    check("x_scales", x_scales, (rows,), (torch.float32,), x.device)
    check("scales", scales, (columns,), (torch.float32,), x.device)
    check_activation(activation)
    if bias is not None:
        check("bias", bias, (columns,), FLOATS, x.device)
    shape = (*x.shape[:-1], columns)
    if residual is not None:
        check("residual", residual, shape, FLOATS, x.device)
        residual = residual.view(rows, columns)
    out = output(out, shape, dtype, x)
    torch.ops.smolvla_edge.linear_w8a8(
        flat, x_scales, codes, scales, bias, activation, residual,
        out.view(rows, columns), runs_triton(x, use),
    )  # fmt: skip
    return out

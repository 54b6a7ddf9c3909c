"""y = activation(row_scale * (x W^T) + bias) + residual, with W as 4-bit codes in groups.

Regime: the expert's 50 rows by 720..4096 columns, ten times a chunk: bound by the bytes of W (0.53
a weight with groups of 64) on anything from an Orin to a Thor, by launches on an H200.

Layout, the bundle's own (codes.py), nothing is repacked:

    codes  [out, (in + 1) / 2] uint8    byte j of a row: code[2j] + 8 | (code[2j + 1] + 8) << 4
    scales [out, groups] float16        group g covers inputs g * G .. (g + 1) * G; the last may be
                                        short (720 = 11 x 64 + 16)

The weights are the tensor core's left operand and the tokens its right one: the padded side of an
instruction is then the one that has 4096 rows, not the one that has 50.

Numerics: codes -8..7 are exact in float16 and bfloat16; each group's products are summed in float32
and the sum is multiplied by the float16 scale in float32, so no weight is ever rounded, in any
dtype of x. Groups are added in order of k. With x = integers of int8 rows (codes.round_rows) and
their scales as `row_scale`, sums within a group are exact: that is the bundle's w4a8.

Unmeasured: no GPU was at hand.
"""

from __future__ import annotations

from smolvla_edge.codes import GROUP_SIZES
from smolvla_edge.errors import InputError
from smolvla_edge.kernels.arguments import FLOATS, check, check_activation, flat_rows, output
from smolvla_edge.kernels.epilogue import activate, finish
from smolvla_edge.kernels.launch import Launch, Tensor, operator, runs_triton, tl, torch, triton
from smolvla_edge.kernels.tiles import cdiv, tile_for


@triton.jit
def _low_nibble(packed, DTYPE: tl.constexpr):
    """The code in the low half of each byte, as DTYPE.

    Set into the mantissa of 2^m, where a unit is 1, and 2^m + 8 taken away: exact, and two
    instructions where an integer conversion runs at a quarter of the rate.
    """
    nibble = packed & 15
    if tl.float16 == DTYPE:
        value = (nibble.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - 1032.0
    elif tl.bfloat16 == DTYPE:
        value = (nibble.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
    else:
        value = (nibble.to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0
    return value.to(DTYPE)


@triton.jit(do_not_specialize=["rows"])
def _linear_w4a16(
    x, codes, scales, bias, residual, row_scale, out, rows,
    DEPTH: tl.constexpr, OUT: tl.constexpr, GROUP: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    BYTES: tl.constexpr = (DEPTH + 1) // 2
    GROUPS: tl.constexpr = (DEPTH + GROUP - 1) // GROUP
    DTYPE: tl.constexpr = x.dtype.element_ty
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, DEPTH, BLOCK_K):
        byte = start // 2 + tl.arange(0, BLOCK_K // 2)
        packed = tl.load(
            codes + n[:, None] * BYTES + byte[None, :],
            mask=(n < OUT)[:, None] & (byte < BYTES)[None, :],
            other=0,
        )
        # What lies past DEPTH, the upper half of an odd row's last byte too, meets zeros of x.
        k = start + tl.arange(0, BLOCK_K)
        tokens = tl.load(
            x + m[None, :] * DEPTH + k[:, None],
            mask=(m < rows)[None, :] & (k < DEPTH)[:, None],
            other=0.0,
        )
        weight = tl.interleave(_low_nibble(packed, DTYPE), _low_nibble(packed >> 4, DTYPE))
        scale = tl.load(scales + n * GROUPS + start // GROUP, mask=n < OUT, other=0.0)
        acc += tl.dot(weight, tokens, input_precision="ieee") * scale.to(tl.float32)[:, None]
    if row_scale is not None:
        acc *= tl.load(row_scale + m, mask=m < rows, other=0.0)[None, :]
    if bias is not None:
        acc += tl.load(bias + n, mask=n < OUT, other=0.0).to(tl.float32)[:, None]
    acc = activate(acc, ACTIVATION)
    at = m[None, :] * OUT + n[:, None]
    inside = (m < rows)[None, :] & (n < OUT)[:, None]
    if residual is not None:
        acc += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside)


def launch(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    group_size: int,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    row_scale: Tensor | None,
    out: Tensor,
    tile: dict[str, int] | None = None,
) -> Launch:
    rows, depth, columns = x.shape[0], x.shape[1], codes.shape[0]
    tile = tile or tile_for("linear_w4a16", (rows, depth, columns), x)
    block_k = min(tile["BLOCK_K"], group_size)  # a step of the loop stays inside a group
    return Launch(
        "linear_w4a16",
        _linear_w4a16,
        (cdiv(columns, tile["BLOCK_N"]), cdiv(rows, tile["BLOCK_M"]), 1),
        {"x": x, "codes": codes, "scales": scales, "bias": bias, "residual": residual,
         "row_scale": row_scale, "out": out, "rows": rows},
        {"DEPTH": depth, "OUT": columns, "GROUP": group_size, "ACTIVATION": activation,
         "BLOCK_M": tile["BLOCK_M"], "BLOCK_N": tile["BLOCK_N"], "BLOCK_K": block_k},
        tile["num_warps"],
        tile["num_stages"],
    )  # fmt: skip


def decode(codes: Tensor, scales: Tensor, depth: int, group_size: int) -> Tensor:
    """The weight that codes and scales stand for, float32 [out, in]."""
    both = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)[:, :depth]
    wide = scales.float().repeat_interleave(group_size, dim=1)[:, :depth]
    return (both.float() - 8) * wide


def reference(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    group_size: int,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    row_scale: Tensor | None,
) -> Tensor:
    y = x.float() @ decode(codes, scales, x.shape[1], group_size).T
    if row_scale is not None:
        y = y * row_scale[:, None]
    return finish(y, bias, activation, residual)


@operator(
    "linear_w4a16(Tensor x, Tensor codes, Tensor scales, int group_size, Tensor? bias, "
    "str activation, Tensor? residual, Tensor? row_scale, Tensor(a!) out, bool triton) -> ()"
)
def _linear_w4a16_op(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    group_size: int,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    row_scale: Tensor | None,
    out: Tensor,
    triton: bool,
) -> None:
    given = (x, codes, scales, group_size, bias, activation, residual, row_scale)
    if triton:
        launch(*given, out).run()
    else:
        out.copy_(reference(*given))


def linear_w4a16(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    *,
    group_size: int,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    use: str = "auto",
) -> Tensor:
    """A linear layer with 4-bit weights: x [..., in] -> [..., out] of `dtype` (None: x's own).

    x float16, bfloat16 or float32; codes uint8 [out, (in + 1) / 2] and scales float16 [out, groups]
    as codes.py stores them, group_size 32, 64 or 128; bias [out] and residual [..., out] of any
    float dtype; row_scale float32 [rows], multiplied before the bias is added; activation "none",
    "gelu_tanh" or "silu". `out` is written and returned; it may not overlap an input. All
    contiguous and on one device. `use`: see the package.

    Raises InputError for arguments that do not fit, BackendError for a `use` that cannot be had.
    Source of the format: smolvla_edge/codes.py.
    """
    flat = flat_rows(x)
    rows, depth = flat.shape
    if group_size not in GROUP_SIZES:
        raise InputError(f"group_size: expected one of {GROUP_SIZES}, got {group_size!r}")
    check("codes", codes, (None, (depth + 1) // 2), (torch.uint8,), x.device)
    columns = codes.shape[0]
    check("scales", scales, (columns, cdiv(depth, group_size)), (torch.float16,), x.device)
    check_activation(activation)
    if dtype not in (None, *FLOATS):
        raise InputError(f"dtype: expected one of {FLOATS} or None, got {dtype}")
    if bias is not None:
        check("bias", bias, (columns,), FLOATS, x.device)
    if row_scale is not None:
        check("row_scale", row_scale, (rows,), (torch.float32,), x.device)
    shape = (*x.shape[:-1], columns)
    if residual is not None:
        check("residual", residual, shape, FLOATS, x.device)
        residual = residual.view(rows, columns)
    out = output(out, shape, dtype or x.dtype, x)
    torch.ops.smolvla_edge.linear_w4a16(
        flat, codes, scales, group_size, bias, activation, residual, row_scale,
        out.view(rows, columns), runs_triton(x, use),
    )  # fmt: skip
    return out

"""softmax(q k^T / sqrt(d)) v with grouped heads, one pass over the keys.

Regime: vision 1024 x 1024, 12 heads (arithmetic); prefix 75..241 squared; expert 50 x 113..291, 15
query heads on 5 key/value heads (latency). d = 64 in all.

Layout: q [batch, rows, heads, d], k and v [batch, keys, kv_heads, d], contiguous. The query heads
of a group are packed into the rows of one product, so keys and values are read once a group:

    packed row r of kv head j  =  token r / group,  head j * group + r % group

Which keys a row reads: the first lengths[row] of them, or those that mask[row] has, or all.

Numerics: scores, softmax and both sums in float32, the weights of the sum rounded to v's dtype.
A row that may read nothing becomes zeros under `lengths`, and under `mask` the average over all
keys, which is what LeRobot computes for padding that nobody reads.

Unmeasured: no GPU was at hand.
"""

from __future__ import annotations

from smolvla_edge.errors import InputError
from smolvla_edge.kernels.arguments import FLOATS, check, output
from smolvla_edge.kernels.launch import Launch, Tensor, operator, runs_triton, tl, torch, triton
from smolvla_edge.kernels.tiles import cdiv, power_of_two, tile_for


@triton.jit(do_not_specialize=["rows", "keys", "factor"])
def _attention_gqa(
    q, k, v, lengths, mask, out, rows, keys, factor,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2)
    packed = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = packed // GROUP
    live = row < rows
    d = tl.arange(0, BLOCK_D)
    at = ((batch * rows + row) * KV_HEADS + head) * GROUP + packed % GROUP
    in_q = live[:, None] & (d < DIM)[None, :]
    query = tl.load(q + at[:, None] * DIM + d[None, :], mask=in_q, other=0.0)
    if lengths is not None:
        length = tl.load(lengths + batch * rows + row, mask=live, other=0)
        length = tl.minimum(length, keys)
        last = tl.max(length, axis=0)
    else:
        last = keys
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, last, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        cell = ((batch * keys + n) * KV_HEADS + head) * DIM
        key = tl.load(
            k + cell[None, :] + d[:, None],
            mask=(n < keys)[None, :] & (d < DIM)[:, None],
            other=0.0,
        )
        scores = tl.dot(query, key, input_precision="ieee") * factor
        if lengths is not None:
            scores = tl.where(n[None, :] < length[:, None], scores, float("-inf"))
        else:
            if mask is not None:
                seen = tl.load(
                    mask + (batch * rows + row)[:, None] * keys + n[None, :],
                    mask=live[:, None] & (n < keys)[None, :],
                    other=0,
                )
                # Finite, so that a row without any key is the average over all of them.
                scores = tl.where(seen != 0, scores, -1e30)
            scores = tl.where((n < keys)[None, :], scores, float("-inf"))
        peak = tl.maximum(largest, tl.max(scores, axis=1))
        # Nothing read so far: subtracting -inf from -inf would be NaN.
        base = tl.where(peak == float("-inf"), 0.0, peak)
        weight = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(largest - base)
        largest = peak
        total = total * shrink + tl.sum(weight, axis=1)
        value = tl.load(
            v + cell[:, None] + d[None, :],
            mask=(n < keys)[:, None] & (d < DIM)[None, :],
            other=0.0,
        )
        acc = acc * shrink[:, None]
        acc = tl.dot(weight.to(value.dtype), value, acc, input_precision="ieee")
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out + at[:, None] * DIM + d[None, :], acc.to(out.dtype.element_ty), mask=in_q)


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    mask: Tensor | None,
    out: Tensor,
    tile: dict[str, int] | None = None,
) -> Launch:
    batch, rows, heads, dim = q.shape
    keys, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    shape = (rows, power_of_two(keys), heads, kv_heads, dim)
    tile = tile or tile_for("attention_gqa", shape, q)
    return Launch(
        "attention_gqa",
        _attention_gqa,
        (cdiv(rows * group, tile["BLOCK_M"]), kv_heads, batch),
        # exp2 is the hardware's exponential; log2(e) goes into the factor of the scores.
        {"q": q, "k": k, "v": v, "lengths": lengths, "mask": mask, "out": out, "rows": rows,
         "keys": keys, "factor": 1.4426950408889634 * dim**-0.5},
        {"KV_HEADS": kv_heads, "GROUP": group, "DIM": dim, "BLOCK_D": power_of_two(dim),
         "BLOCK_M": tile["BLOCK_M"], "BLOCK_N": tile["BLOCK_N"]},
        tile["num_warps"],
        tile["num_stages"],
    )  # fmt: skip


def reference(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, mask: Tensor | None
) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
    if lengths is not None:
        seen = torch.arange(k.shape[2], device=k.device) < lengths[..., None]
        scores = scores.masked_fill(~seen[:, None], float("-inf"))
        # Of a row that reads nothing softmax is NaN.
        return (scores.softmax(-1).nan_to_num() @ v).transpose(1, 2)
    if mask is not None:
        scores = scores.masked_fill(mask[:, None] == 0, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@operator(
    "attention_gqa(Tensor q, Tensor k, Tensor v, Tensor? lengths, Tensor? mask, Tensor(a!) out, "
    "bool triton) -> ()"
)
def _attention_gqa_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None,
    mask: Tensor | None,
    out: Tensor,
    triton: bool,
) -> None:
    if triton:
        launch(q, k, v, lengths, mask, out).run()
    else:
        out.copy_(reference(q, k, v, lengths, mask))


def attention_gqa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    out: Tensor | None = None,
    use: str = "auto",
) -> Tensor:
    """Attention of q [batch, rows, heads, d] to k and v [batch, keys, kv_heads, d] -> as q.

    float16, bfloat16 or float32, all of one dtype; query head h reads key/value head
    h // (heads / kv_heads); d up to 128. Either lengths int32 [batch, rows], each at most `keys`:
    a row reads the first of them; or mask bool [batch, rows, keys]; or neither: all keys. `out` is
    written and returned; it may not overlap an input. All contiguous and on one device. `use`: see
    the package.

    Raises InputError for arguments that do not fit, BackendError for a `use` that cannot be had.
    Source: model/layers.py (attend); the packing of groups is https://github.com/flashinfer-ai/flashinfer's.
    """
    check("q", q, (None, None, None, None), FLOATS)
    batch, rows, heads, dim = q.shape
    check("k", k, (batch, None, None, dim), (q.dtype,), q.device)
    keys, kv_heads = k.shape[1:3]
    check("v", v, k.shape, (q.dtype,), q.device)
    if heads % kv_heads or dim > 128:
        raise InputError(
            f"q: expected a multiple of {kv_heads} heads and at most 128 values a head, got "
            f"{heads} heads of {dim}"
        )
    if lengths is not None and mask is not None:
        raise InputError("lengths and mask: expected one of them or neither, got both")
    if lengths is not None:
        check("lengths", lengths, (batch, rows), (torch.int32,), q.device)
    if mask is not None:
        check("mask", mask, (batch, rows, keys), (torch.bool,), q.device)
        mask = mask.view(torch.uint8)
    out = output(out, q.shape, q.dtype, q)
    torch.ops.smolvla_edge.attention_gqa(q, k, v, lengths, mask, out, runs_triton(q, use))
    return out

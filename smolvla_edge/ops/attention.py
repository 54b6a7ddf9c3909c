"""Attention over a cache of keys and values, and what fills it."""

from __future__ import annotations

from smolvla_edge.errors import InputError
from smolvla_edge.ops.arrays import Array, Caller, Stream, call, operators


def attention(
    q: Array,
    keys: Array,
    values: Array,
    lengths: Array | int | None = None,
    out: Array | None = None,
    stream: Stream = None,
) -> Array:
    """out[r, h] = softmax(q[r, h] Kᵀ / √d) V over the first lengths[r] keys of head h // group.

    q [rows, heads, d]; keys and values [kv_heads, capacity, d] without gaps, of one dtype, at a
    multiple of 16 bytes, finite up to the largest length; group = heads / kv_heads, d up to 256.
    lengths: int32 [rows] in GPU memory, or one number for all rows, or None for `capacity`. A row
    of length 0 becomes zeros; a length beyond the capacity counts as the capacity. out as q; a
    new one has q's dtype.

    With bfloat16 keys, values and out and d = 64: products of bfloat16 on tensor cores, sums and
    softmax in float32, the softmax rounded to bfloat16 (q is rounded too if it is float32; else its
    rows are at multiples of 16 bytes). Otherwise everything is float32 arithmetic, and the scores
    have to fit in shared memory: about 16 bytes a key. Raises as the module says.
    """
    if lengths is None or isinstance(lengths, int):
        operators()
        capacity = int(keys.shape[1]) if len(getattr(keys, "shape", ())) == 3 else 0
        count = capacity if lengths is None else int(lengths)
        if not 0 <= count <= capacity:
            raise InputError(f"lengths: expected 0 to {capacity} (the capacity), got {count}")
        lengths = Caller(q, stream).full((int(q.shape[0]),), count)
    return call(
        "attention", q, stream, q=q, keys=keys, values=values, lengths=lengths, out=out
    )  # fmt: skip


def store_kv(
    keys: Array,
    values: Array,
    key_cache: Array,
    value_cache: Array,
    first: Array | None = None,
    stream: Stream = None,
) -> None:
    """cache[h, first + r] = rows[r, h] for keys and values; rows beyond the capacity are dropped.

    keys and values float32 or bfloat16 [rows, kv_heads, d]; the caches, float32 or bfloat16
    [kv_heads, capacity, d] without gaps, are what attention reads. first: an int32 of 0 or more in
    GPU memory, None for 0. Raises as the module says.
    """
    call(
        "store_kv", keys, stream, keys=keys, values=values, key_cache=key_cache,
        value_cache=value_cache, first=first,
    )  # fmt: skip


def scatter_kv(
    keys: Array,
    values: Array,
    key_cache: Array,
    value_cache: Array,
    positions: Array,
    stream: Stream = None,
) -> None:
    """cache[h, positions[r]] = rows[r, h] for keys and values: `store_kv` of scattered rows.

    positions: int32 [rows] in GPU memory, each once; rows whose position is no row of the cache are
    dropped, and rows of the cache that none names keep what they hold. The rest is as in
    `store_kv`. Raises as the module says.
    """
    call(
        "scatter_kv", keys, stream, keys=keys, values=values, key_cache=key_cache,
        value_cache=value_cache, positions=positions,
    )  # fmt: skip


def rope_store(
    q: Array,
    keys: Array,
    values: Array,
    cosine: Array,
    sine: Array,
    key_cache: Array,
    value_cache: Array,
    first: Array | None = None,
    stream: Stream = None,
) -> None:
    """`rope` of q and of keys, in place, and then `store_kv`, in one launch.

    Shapes and dtypes are those of the two; q has as many rows as keys. A key is rounded to the
    cache's dtype from the float32 that the rotation gave, and a float32 cache takes float32 rows
    only. Raises as the module says.
    """
    call(
        "rope_store", q, stream, q=q, keys=keys, values=values, cosine=cosine, sine=sine,
        key_cache=key_cache, value_cache=value_cache, first=first,
    )  # fmt: skip


def rope(
    x: Array, cosine: Array, sine: Array, first: Array | None = None, stream: Stream = None
) -> Array:
    """Rotates every head of x in place, row r by the angles of row first + r of the tables.

    With a, b = the halves of x[r, h]: a, b = a cos - b sin, b cos + a sin. x float32 or bfloat16
    [rows, heads, d], d even; cosine and sine float32 [positions, d / 2]. first: an int32 in GPU
    memory with 0 <= first <= positions - rows, None for 0. Returns x. Raises as the module says.
    """
    call("rope", x, stream, x=x, cosine=cosine, sine=sine, first=first)
    return x

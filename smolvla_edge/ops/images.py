"""From a camera's frame to the rows of the vision tower, and its last step; what changed in it."""

from __future__ import annotations

from smolvla_edge.ops.arrays import Array, Stream, call


def letterbox(
    frame: Array, height: int, width: int, out: Array | None = None, stream: Stream = None
) -> Array:
    """A frame as float32 [3, height, width] in [-1, 1], its aspect kept, padded left and top by -1.

    frame: RGB [frame height, frame width, 3] without gaps, uint8, or float32 in [0, 1]. Bilinear,
    pixel centres, edges clamped, no antialias: torch's align_corners=False, and LeRobot's
    resize_with_pad with its 2x - 1. Raises as the module says.
    """
    return call("letterbox", frame, stream, frame=frame, height=height, width=width, out=out)


def patchify(
    pixels: Array,
    patch: int,
    out: Array | None = None,
    stream: Stream = None,
    *,
    ids: Array | None = None,
    dtype: str = "bfloat16",
) -> Array:
    """Patches of pixels [3, height, width] as rows [patches, 3 · patch²] in (channel, y, x) order.

    pixels float32 without gaps; height and width multiples of `patch`. Patches go from left to
    right, then down; with `ids`, an int32 [rows] in GPU memory, row r is patch ids[r]. out float32
    or bfloat16; a new one is of `dtype`. Raises as the module says.
    """
    return call(
        "patchify", pixels, stream, pixels=pixels, patch=patch, ids=ids, dtype=dtype, out=out
    )  # fmt: skip


def pixel_shuffle(x: Array, scale: int, out: Array | None = None, stream: Stream = None) -> Array:
    """Joins scale x scale neighbouring rows: [side², columns] to [(side/scale)², scale² · columns].

    The rows of x form a side x side grid. Row (Y, X) of the result holds rows (Y scale + y,
    X scale + x) one after another, x fastest. x float32 or bfloat16; out either, a new one as x.
    Raises as the module says.
    """
    return call("pixel_shuffle", x, stream, x=x, scale=scale, out=out)


def block_change(
    pixels: Array,
    reference: Array,
    patch: int,
    scale: int,
    out: Array | None = None,
    stream: Stream = None,
) -> Array:
    """How far pixels are from a reference, in every block of scale x scale patches: [down, across].

    The mean of |pixels - reference| / 2 over a patch, in the patch of the block where it is
    largest. Both float32 [3, height, width] without gaps, in [-1, 1]; height and width multiples
    of patch · scale. out float32 without gaps. 0 is where all pixels are equal, NaN where one is
    no number. Sums have one order: the same bits wherever the block lies. Raises as the module
    says.
    """
    return call(
        "block_change", pixels, stream, pixels=pixels, reference=reference, patch=patch,
        scale=scale, out=out,
    )  # fmt: skip


def copy_blocks(pixels: Array, ids: Array, side: int, out: Array, stream: Stream = None) -> Array:
    """Copies the blocks `ids` of side x side pixels into `out`, in place. Returns it.

    pixels and out float32 [3, height, width] without gaps, height and width multiples of `side`;
    blocks are counted from left to right, then down. ids: int32 [blocks] in GPU memory. Raises as
    the module says.
    """
    call("copy_blocks", pixels, stream, pixels=pixels, ids=ids, side=side, out=out)
    return out

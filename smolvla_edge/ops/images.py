"""From a camera's frame to the rows of the vision tower, and its last step."""

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
    dtype: str = "bfloat16",
) -> Array:
    """Patches of pixels [3, height, width] as rows [patches, 3 · patch²] in (channel, y, x) order.

    pixels float32 without gaps; height and width multiples of `patch`. Patches go from left to
    right, then down. out float32 or bfloat16; a new one is of `dtype`. Raises as the module says.
    """
    return call("patchify", pixels, stream, pixels=pixels, patch=patch, dtype=dtype, out=out)


def pixel_shuffle(x: Array, scale: int, out: Array | None = None, stream: Stream = None) -> Array:
    """Joins scale x scale neighbouring rows: [side², columns] to [(side/scale)², scale² · columns].

    The rows of x form a side x side grid. Row (Y, X) of the result holds rows (Y scale + y,
    X scale + x) one after another, x fastest. x float32 or bfloat16; out either, a new one as x.
    Raises as the module says.
    """
    return call("pixel_shuffle", x, stream, x=x, scale=scale, out=out)

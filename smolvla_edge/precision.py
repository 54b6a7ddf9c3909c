"""The precision of a bundle: what its tensors are stored in, and what arithmetic they meet.

`compute` says what weights stored in bfloat16 are multiplied with. "float32": the activations as
they are, which is exact. "bfloat16": activations rounded to the nearest bfloat16; sums, norms,
softmax, the residual stream and the flow state stay float32 (docs/numerics.md). Weights stored in
float32 meet unrounded sums in both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np

from smolvla_edge.errors import CheckpointError
from smolvla_edge.safetensors_file import NUMPY_DTYPES, TensorEntry, as_float32

COMPUTE = ("float32", "bfloat16")
CONVERT_DTYPES = ("keep", "bfloat16")

# Matrices that stay float32 in a bfloat16 bundle. Each is under 0.1 % of the arithmetic, and each
# either meets the robot's own numbers (state, actions, the time of the flow, where LeRobot computes
# in float32 too) or makes the keys and values that all ten steps read (where rounding was seen to
# cost success in another runtime).
_HEADS = ("state_in.", "action_in.", "time_in.", "time_out.", "action_out.")
_CROSS = ("attn.k.weight", "attn.v.weight")


def stored_dtype(name: str, entry: TensorEntry, cross_layers: Collection[int], dtype: str) -> str:
    """What `convert --dtype` stores a tensor in ("F32", "BF16" or "F16").

    "keep": as it is. "bfloat16": matrices in BF16 but for the few above, which are F32; vectors
    and the position table keep their dtype, since they are added or multiplied in float32 anyway.
    """
    if dtype == "keep" or len(entry.shape) < 2 or name == "vision.position.weight":
        return entry.dtype
    if name.startswith(_HEADS):
        return "F32"
    crossing = {f"expert.layers.{layer}.{part}" for layer in cross_layers for part in _CROSS}
    return "F32" if name in crossing else "BF16"


def convert_chunks(chunks: Iterable[bytes], source: str, target: str, name: str) -> Iterator[bytes]:
    """The chunks of a tensor in another dtype; each chunk holds whole elements.

    Widening is exact, narrowing rounds to nearest even. Raises CheckpointError for a finite value
    that bfloat16 cannot hold.
    """
    if source == target:
        yield from chunks
        return
    for chunk in chunks:
        wide = as_float32(np.frombuffer(chunk, NUMPY_DTYPES[source]), source)
        if target == "F32":
            yield wide.astype("<f4", copy=False).tobytes()
            continue
        narrow = to_bfloat16(wide)
        if not np.isfinite(as_float32(narrow, "BF16")[np.isfinite(wide)]).all():
            raise CheckpointError(
                f"{name}: expected values that bfloat16 can hold (below 3.4e38), got larger ones. "
                "Convert with --dtype keep"
            )
        yield narrow.astype("<u2", copy=False).tobytes()


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the bits of the nearest bfloat16 (ties to even; NaN stays NaN), uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))) >> np.uint32(16)
    quiet = bits >> np.uint32(16) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)

"""The CUDA kernels, one function each, on arrays of other libraries: torch, CuPy, or anything with
`__dlpack__` or `__cuda_array_interface__`. Torch is neither linked nor imported.

    from smolvla_edge import ops
    w = ops.pack_w4(codes, scales, group_size=64)          # numpy, as a bundle stores them
    y = ops.linear_w4a16(x, w, residual=y)                 # torch bfloat16 [rows, in] on a GPU

What holds for all of them:

- Arrays are on one GPU (or in pinned host memory). Their last dimension has no gaps; where rows may
  have gaps between them, any distance will do that keeps rows aligned (each function says to what;
  4 bytes where it says nothing). bfloat16 is read through DLPack: CuPy has no such dtype.
- Work goes to `stream` (an int, or a stream of torch, CuPy or CUDA Python), by default the current
  stream of the library of the first array, else the legacy default stream. A call returns when the
  kernel is launched: nothing waits, so arrays stay alive until their stream has passed it, which
  torch and CuPy see to for the current stream. Inside the capture of a CUDA graph everything works
  that ran once before it; a graph needs its weights (PackedWeight) and arrays kept for its life.
- Without `out` the result is made by the library of the first array (torch.empty, cupy.empty);
  other libraries pass `out`. It may share memory with no other argument, but where it says so.
- Nothing is differentiable: tensors that want a gradient are refused outside of torch.no_grad().

Raises InputError (a ValueError) that names the argument, what was expected and what came;
BackendError where this build has no CUDA kernels or the GPU cannot run them. Numbers inside arrays
are not looked at: positions, lengths, steps and ids that point outside of a table are the caller's.
"""

from __future__ import annotations

from smolvla_edge.ops.arrays import available
from smolvla_edge.ops.attention import attention, rope, rope_store, scatter_kv, store_kv
from smolvla_edge.ops.flow import advance, flow_step
from smolvla_edge.ops.images import (
    block_change,
    copy_blocks,
    letterbox,
    patchify,
    pixel_shuffle,
)
from smolvla_edge.ops.linear import linear, linear_w4a16, linear_w8a8, pack_gated
from smolvla_edge.ops.rows import (
    QuantizedRows,
    add_rows,
    compare_rows,
    copy_rows,
    layer_norm,
    pick_rows,
    put_rows,
    quantize_rows,
    quantized_row_bytes,
    rms_norm,
)
from smolvla_edge.ops.weights import PackedWeight, pack_w4, pack_w8

__all__ = [
    "PackedWeight",
    "QuantizedRows",
    "add_rows",
    "advance",
    "attention",
    "available",
    "block_change",
    "compare_rows",
    "copy_blocks",
    "copy_rows",
    "flow_step",
    "layer_norm",
    "letterbox",
    "linear",
    "linear_w4a16",
    "linear_w8a8",
    "pack_gated",
    "pack_w4",
    "pack_w8",
    "patchify",
    "pick_rows",
    "pixel_shuffle",
    "put_rows",
    "quantize_rows",
    "quantized_row_bytes",
    "rms_norm",
    "rope",
    "rope_store",
    "scatter_kv",
    "store_kv",
]

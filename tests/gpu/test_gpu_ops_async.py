"""No operator waits for the GPU or allocates on it: on the emulator, where both can be seen.

(On a GPU the capture of graphs in test_gpu_ops_torch.py would fail.)
"""

from __future__ import annotations

import numpy as np
import pytest
from device_arrays import Guarded, to_device

from smolvla_edge import ops

pytestmark = pytest.mark.gpu

ROWS, COLUMNS = 4, 64


KEPT: list = []  # operands, until what was asked is done


def kept(array):
    KEPT.append(array)
    return array


def f32(*shape):
    return kept(to_device(np.ones(shape, np.float32)))


def bf16(*shape):
    return kept(to_device(np.ones(shape, np.float32), "bfloat16"))


def i32(*values):
    return kept(to_device(np.array(values, np.int32)))


def integers(rows: int, columns: int = COLUMNS) -> ops.QuantizedRows:
    data = Guarded((rows, ops.quantized_row_bytes(columns)), "int8")
    return ops.QuantizedRows(data.array, columns)


def calls() -> dict:
    """Every operator on small operands, to be called with what it writes (its shape and dtype)."""
    w4 = ops.pack_w4(np.zeros((16, 32), np.uint8), np.ones((16, 2), np.float16), 32)
    w8 = ops.pack_w8(np.ones((16, 64), np.int8), np.ones(16, np.float32))
    x, y = f32(ROWS, COLUMNS), ((ROWS, 16), "float32")
    xb, ones, cache = bf16(ROWS, COLUMNS), f32(COLUMNS), (2, 9, 64)
    heads, angles = (ROWS, 2, 64), (f32(9, 32), f32(9, 32))
    q, lengths = bf16(*heads), i32(1, 2, 3, 4)
    codes = ops.quantize_rows(x, integers(ROWS))
    bytes_ = ((ROWS, ops.quantized_row_bytes(COLUMNS)), "int8")
    as_rows = lambda out: ops.QuantizedRows(out, COLUMNS)  # noqa: E731
    return {
        "linear": (y, lambda out: ops.linear(x, f32(16, COLUMNS), out=out)),
        "linear in bfloat16": (y, lambda out: ops.linear(xb, bf16(16, COLUMNS), out=out)),
        "pack_gated": (((16, 8), "float32"), lambda out: ops.pack_gated(f32(8, 8), f32(8, 8), out)),
        "linear_w4a16": (y, lambda out: ops.linear_w4a16(xb, w4, out=out)),
        "linear_w8a8": (y, lambda out: ops.linear_w8a8(codes, w8, out=out)),
        "attention": (
            (heads, "bfloat16"),
            lambda out: ops.attention(q, bf16(*cache), bf16(*cache), lengths, out),
        ),
        "attention in float32": (
            (heads, "float32"),
            lambda out: ops.attention(q, f32(*cache), f32(*cache), lengths, out),
        ),
        "store_kv": (
            (cache, "float32"),
            lambda out: ops.store_kv(f32(*heads), f32(*heads), out, f32(*cache)),
        ),
        "scatter_kv": (
            (cache, "float32"),
            lambda out: ops.scatter_kv(
                f32(*heads), f32(*heads), out, f32(*cache), i32(*range(ROWS))
            ),
        ),
        "pick_rows": (
            ((2, COLUMNS), "float32"),
            lambda out: ops.pick_rows(x, i32(1, 0), out),
        ),
        "put_rows": (
            ((ROWS, COLUMNS), "float32"),
            lambda out: ops.put_rows(f32(2, COLUMNS), i32(1, 0), out),
        ),
        "add_rows": (((ROWS, COLUMNS), "float32"), lambda out: ops.add_rows(x, x, 1.0, out)),
        "compare_rows": (((ROWS, 5), "float32"), lambda out: ops.compare_rows(x, x, None, out)),
        "block_change": (
            ((1, 2), "float32"),
            lambda out: ops.block_change(f32(3, 4, 8), f32(3, 4, 8), 2, 2, out),
        ),
        "copy_blocks": (
            ((3, 4, 8), "float32"),
            lambda out: ops.copy_blocks(f32(3, 4, 8), i32(1), 4, out),
        ),
        "rope_store": (
            (cache, "float32"),
            lambda out: ops.rope_store(
                f32(*heads), f32(*heads), f32(*heads), *angles, out, f32(*cache)
            ),
        ),
        "rms_norm": (((ROWS, COLUMNS), "float32"), lambda out: ops.rms_norm(x, ones, out=out)),
        "layer_norm": (
            ((ROWS, COLUMNS), "float32"),
            lambda out: ops.layer_norm(x, ones, ones, out=out),
        ),
        "rms_norm in integers": (bytes_, lambda out: ops.rms_norm(x, ones, out=as_rows(out))),
        "quantize_rows": (bytes_, lambda out: ops.quantize_rows(x, as_rows(out))),
        "copy_rows": (((ROWS, COLUMNS), "bfloat16"), lambda out: ops.copy_rows(x, out=out)),
        "letterbox": (((3, 8, 8), "float32"), lambda out: ops.letterbox(f32(4, 6, 3), 8, 8, out)),
        "patchify": (((4, 12), "float32"), lambda out: ops.patchify(f32(3, 4, 4), 2, out)),
        "pixel_shuffle": (((1, 256), "float32"), lambda out: ops.pixel_shuffle(x, 2, out)),
        "rope": ((heads, "float32"), lambda out: ops.rope(out, *angles)),
        "flow_step": (
            ((ROWS, COLUMNS), "float32"),
            lambda out: ops.flow_step(out, x, f32(10, 3), i32(0)),
        ),
        "advance": (((1,), "int32"), lambda out: ops.advance(out)),
    }


def finish() -> None:
    """Waits for the emulated GPU, as giving memory back does."""
    ops.pack_w8(np.ones((1, 1), np.int8), np.ones(1, np.float32))
    KEPT.clear()


IN_PLACE = {"rope", "flow_step", "advance"}
# The emulator takes what no cudaMalloc gave for pageable memory, and copies of that at once.
COPIES = {"pack_gated"}


def test_every_operator_is_here():
    made = {"available", "pack_w4", "pack_w8", "quantized_row_bytes"}
    names = {name.split(" in ")[0] for name in calls()}
    assert names == {name for name in ops.__all__ if name[0].islower()} - made


def test_a_call_neither_waits_nor_allocates(emulator):
    for name, ((shape, dtype), call) in calls().items():
        out = Guarded(shape, dtype, np.ones(shape) if name in IN_PLACE else None)
        before = out.read()
        emulator.configure(deferred=name not in COPIES)
        emulator.fail_allocation(1)
        call(out.array)
        emulator.fail_allocation(0)
        late = out.read()
        emulator.configure()
        finish()
        nan = late.dtype == np.float32
        if name not in COPIES:
            assert np.array_equal(late, before, equal_nan=nan), f"{name} waited for its result"
        assert not np.array_equal(out.read(), before, equal_nan=nan), f"{name} has no result"
        out.check()

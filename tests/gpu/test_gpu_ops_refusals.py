"""What operators refuse before anything is launched, and what their errors say."""

from __future__ import annotations

import numpy as np
import pytest
from device_arrays import Guarded, empty, emulated, to_device

from smolvla_edge import ops
from smolvla_edge.codes import CodeFormat, round_to_nearest
from smolvla_edge.errors import InputError

pytestmark = pytest.mark.gpu


def bf16(*shape, **where):
    return Guarded(shape, "bfloat16", np.ones(shape, np.float32), **where).array


def f32(*shape, **where):
    return Guarded(shape, "float32", np.ones(shape, np.float32), **where).array


def i32(*values):
    return to_device(np.array(values, np.int32))


def weight(bits: int, rows: int = 16, columns: int = 64):
    form = CodeFormat(4, 32) if bits == 4 else CodeFormat(8)
    stored = round_to_nearest(np.ones((rows, columns), np.float32), form).stored()
    return ops.pack_w4(*stored, 32) if bits == 4 else ops.pack_w8(*stored)


def linear(**changes):
    arguments = {"x": bf16(4, 64), "w": bf16(16, 64), "out": empty((4, 16))} | changes
    return ops.linear(**arguments)


def attention(**changes):
    arguments = {
        "q": bf16(4, 6, 64), "keys": bf16(2, 10, 64), "values": bf16(2, 10, 64),
        "lengths": i32(1, 2, 3, 4), "out": empty((4, 6, 64), "bfloat16"),
    }  # fmt: skip
    return ops.attention(**(arguments | changes))


def flow(**changes):
    arguments = {"x": f32(4, 6), "velocity": f32(4, 6), "schedule": f32(10, 3), "step": i32(0)}
    return ops.flow_step(**(arguments | changes))


REFUSED = {
    "dtype of x": (
        lambda: linear(x=to_device(np.ones((4, 64), np.int32))),
        r"x: expected float32 or bfloat16 \[any, any\] in GPU memory, got int32 \[4, 64\]",
    ),
    "rank of x": (lambda: linear(x=bf16(4, 1, 64)), r"x: expected .*got bfloat16 \[4, 1, 64\]"),
    "no array": (lambda: linear(x=[[1.0]]), "x: expected an array with __dlpack__"),
    "depth of w": (lambda: linear(w=bf16(16, 72)), r"w: expected bfloat16 \[any, 64\]"),
    "dtype of w": (
        lambda: linear(w=f32(16, 64)),
        r"w: expected bfloat16 \[any, 64\] .*got float32",
    ),
    "empty": (lambda: linear(x=bf16(0, 64)), r"x: expected 1 to \d+ in dimension 0"),
    "columns of x": (
        lambda: linear(x=bf16(4, 66, pitch=72), w=bf16(16, 66, pitch=72)),
        "x: expected a multiple of 8 bfloat16 columns, got 66",
    ),
    "pitch of x": (
        lambda: linear(x=bf16(4, 64, pitch=66)),
        "x: expected rows that begin at multiples of 16 bytes",
    ),
    "x beside": (
        lambda: linear(x=bf16(4, 64, shift=4)),
        "x: expected rows that begin at multiples of 16",
    ),
    "w beside": (
        lambda: linear(w=bf16(16, 64, shift=2)),
        "w: expected rows that begin at multiples of 16",
    ),
    "gaps in w": (
        lambda: linear(x=f32(4, 64), w=f32(16, 64, pitch=65)),
        "w: expected float32 .*without gaps",
    ),
    "shape of out": (
        lambda: linear(out=empty((4, 17))),
        r"out: expected bfloat16 or float32 \[4, 16\]",
    ),
    "dtype of out": (lambda: linear(out=empty((4, 16), "int32")), "out: expected .*got int32"),
    "pitch of out": (
        lambda: linear(out=Guarded((4, 16), "bfloat16", pitch=17).array),
        "out: expected rows that begin at multiples of 4",
    ),
    "bias": (lambda: linear(bias=f32(15)), r"bias: expected float32 \[16\]"),
    "bias in bfloat16": (
        lambda: linear(bias=bf16(16)),
        r"bias: expected float32 \[16\] .*got bfloat16",
    ),
    "bias table": (
        lambda: linear(bias=f32(16), bias_row=i32(0)),
        r"bias: expected float32 \[any, 16\]",
    ),
    "row of no table": (lambda: linear(bias_row=i32(0)), "bias_row: expected None without a bias"),
    "rows of a table": (
        lambda: linear(bias=f32(3, 16), bias_row=i32(0, 1)),
        r"bias_row: expected int32 \[1\]",
    ),
    "activation": (
        lambda: linear(activation="relu"),
        "activation: expected None, gelu_tanh or silu, got relu",
    ),
    "scale": (lambda: linear(scale=float("nan")), "scale: expected a finite number"),
    "residual": (lambda: linear(residual=bf16(4, 16)), r"residual: expected float32 \[4, 16\]"),
    "gated rows": (lambda: linear(gated=True, w=bf16(24, 64)), "w: expected what pack_gated made"),
    "gated activation": (
        lambda: linear(gated=True, out=empty((4, 8)), activation="silu"),
        "activation: of a gated weight",
    ),
    "gated scale": (
        lambda: linear(gated=True, out=empty((4, 8)), column_scale=f32(8)),
        "column_scale: of a gated weight",
    ),
    "gate": (
        lambda: ops.pack_gated(f32(12, 8), f32(12, 8), out=empty((24, 8))),
        "gate: expected a multiple of 8 rows",
    ),
    "up": (
        lambda: ops.pack_gated(f32(8, 8), f32(8, 9), out=empty((16, 8))),
        r"up: expected float32 \[8, 8\]",
    ),
    "4-bit x": (
        lambda: ops.linear_w4a16(f32(4, 64), weight(4), out=empty((4, 16))),
        r"x: expected bfloat16 \[any, 64\]",
    ),
    "weight of other bits": (
        lambda: ops.linear_w4a16(bf16(4, 64), weight(8), out=empty((4, 16))),
        "w: expected a PackedWeight of pack_w4, got one of 8 bits",
    ),
    "no weight": (
        lambda: ops.linear_w8a8(bf16(4, 64), bf16(16, 64)),
        "w: expected a PackedWeight of pack_w8, got",
    ),
    "integers of another width": (
        lambda: ops.linear_w8a8(ops.QuantizedRows(empty((4, 64), "int8"), 60), weight(8)),
        "x: expected rows of 64 integers, got 60",
    ),
    "integers of another pitch": (
        lambda: ops.linear_w8a8(
            ops.QuantizedRows(empty((4, 64), "int8"), 64), weight(8), out=empty((4, 16))
        ),
        r"x: expected int8 \[any, \d+\]",
    ),
    "out of another width": (
        lambda: ops.quantize_rows(f32(4, 64), ops.QuantizedRows(empty((4, 80), "int8"), 60)),
        "out: expected QuantizedRows",
    ),
    "heads": (
        lambda: attention(q=bf16(4, 5, 64), out=empty((4, 5, 64), "bfloat16")),
        "q: expected a multiple of 2 heads",
    ),
    "width of heads": (
        lambda: attention(q=bf16(4, 6, 32)),
        "q: expected a multiple of 2 heads of the keys' width",
    ),
    "wide heads": (
        lambda: attention(q=bf16(4, 2, 512), keys=bf16(2, 3, 512), values=bf16(2, 3, 512)),
        "at most 256",
    ),
    "values": (
        lambda: attention(values=bf16(2, 11, 64)),
        r"values: expected bfloat16 \[2, 10, 64\]",
    ),
    "gaps in keys": (
        lambda: attention(keys=bf16(2, 10, 64, pitch=648)),
        "keys: expected .* without gaps",
    ),
    "lengths in int64": (
        lambda: attention(lengths=to_device(np.ones(4, np.float32))),
        r"lengths: expected int32 \[4\]",
    ),
    "count of lengths": (lambda: attention(lengths=i32(1, 2)), r"lengths: expected int32 \[4\]"),
    "length": (
        lambda: attention(lengths=11),
        r"lengths: expected 0 to 10 \(the capacity\), got 11",
    ),
    "negative length": (lambda: attention(lengths=-1), "lengths: expected 0 to 10"),
    "too many rows": (
        lambda: ops.store_kv(f32(11, 2, 64), f32(11, 2, 64), bf16(2, 10, 64), bf16(2, 10, 64)),
        "keys: expected at most the 10 rows",
    ),
    "float32 cache": (
        lambda: ops.rope_store(
            bf16(4, 6, 8),
            f32(4, 2, 8),
            f32(4, 2, 8),
            f32(4, 4),
            f32(4, 4),
            f32(2, 9, 8),
            f32(2, 9, 8),
        ),
        "key_cache: expected bfloat16 beside rows of bfloat16, got float32",
    ),
    "rows of q": (
        lambda: ops.rope_store(
            f32(3, 6, 8),
            f32(4, 2, 8),
            f32(4, 2, 8),
            f32(4, 4),
            f32(4, 4),
            f32(2, 9, 8),
            f32(2, 9, 8),
        ),
        r"q: expected bfloat16 or float32 \[4, any, 8\]",
    ),
    "odd heads": (
        lambda: ops.rope(f32(4, 2, 9), f32(4, 4), f32(4, 4)),
        "x: expected heads of an even width",
    ),
    "angles": (
        lambda: ops.rope(f32(4, 2, 8), f32(4, 8), f32(4, 8)),
        r"cosine: expected float32 \[any, 4\]",
    ),
    "few angles": (
        lambda: ops.rope(f32(4, 2, 8), f32(3, 4), f32(3, 4)),
        "cosine: expected a row for each of the 4 rows",
    ),
    "other angles": (
        lambda: ops.rope(f32(4, 2, 8), f32(5, 4), f32(4, 4)),
        r"sine: expected float32 \[5, 4\]",
    ),
    "norm of bfloat16": (
        lambda: ops.rms_norm(bf16(4, 8), f32(8), out=empty((4, 8))),
        "x: expected float32",
    ),
    "norm weight": (
        lambda: ops.rms_norm(f32(4, 8), f32(9), out=empty((4, 8))),
        r"weight: expected float32 \[8\]",
    ),
    "no norm weight": (
        lambda: ops.rms_norm(f32(4, 8), None, out=empty((4, 8))),
        "weight: expected float32",
    ),
    "no norm bias": (
        lambda: ops.layer_norm(f32(4, 8), f32(8), None, out=empty((4, 8))),
        "bias: expected float32",
    ),
    "eps": (
        lambda: ops.rms_norm(f32(4, 8), f32(8), -1.0, empty((4, 8))),
        "eps: expected a finite number",
    ),
    "dtype of a copy": (
        lambda: ops.copy_rows(f32(4, 8), dtype="float64"),
        "dtype: expected float32 or bfloat16, got float64",
    ),
    "schedule": (lambda: flow(schedule=f32(10, 4)), r"schedule: expected float32 \[any, 3\]"),
    "no step": (lambda: flow(step=None), "step: expected an int32"),
    "step of floats": (lambda: flow(step=f32(1)), r"step: expected int32 \[1\]"),
    "half a pull": (lambda: flow(previous=f32(4, 6)), "previous, weight: expected both or neither"),
    "pull": (
        lambda: flow(previous=f32(4, 5), weight=f32(4)),
        r"previous: expected float32 \[4, 6\]",
    ),
    "frame": (
        lambda: ops.letterbox(f32(4, 4, 4), 8, 8, empty((3, 8, 8))),
        r"frame: expected uint8 or float32 \[any, any, 3\]",
    ),
    "frame with gaps": (
        lambda: ops.letterbox(f32(4, 4, 3, pitch=13), 8, 8, empty((3, 8, 8))),
        "frame: expected .*without gaps",
    ),
    "size of pixels": (
        lambda: ops.letterbox(f32(4, 4, 3), 0, 8, empty((3, 8, 8))),
        "height, width: expected 1 to 8192",
    ),
    "patch": (
        lambda: ops.patchify(f32(3, 8, 8), 3, empty((4, 27))),
        "patch: expected a divisor of 8 and 8, got 3",
    ),
    "no square": (
        lambda: ops.pixel_shuffle(f32(8, 4), 2, empty((2, 16))),
        "x: expected a square of rows",
    ),
    "scale of a square": (
        lambda: ops.pixel_shuffle(f32(9, 4), 2, empty((2, 16))),
        "its side a multiple of scale = 2",
    ),
    "stream": (lambda: linear(stream="main"), "stream: expected None, a stream of torch"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_calls(case):
    call, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        call()


def test_out_may_not_share_memory(random):
    x, w = f32(4, 64), f32(64, 64)
    with pytest.raises(
        InputError, match=r"out: expected memory of its own, got memory that x shares"
    ):
        ops.linear(x, w, out=x)
    residual = Guarded((4, 64), "float32", random.floats(4, 64), pitch=65).array
    ops.linear(x, w, residual=residual, out=residual)  # the very same array may
    with pytest.raises(
        InputError, match=r"x: expected memory of its own, got memory that velocity"
    ):
        ops.flow_step(x, x, f32(10, 3), i32(0))


def columns_of(guarded: Guarded, first: int, last: int):
    array = guarded.array
    return array.view(first, last) if emulated() else array[:, first:last]


def test_columns_side_by_side_share_nothing(random):
    """A result may lie beside what it is made of, in the columns of one matrix."""
    both = Guarded((5, 48), "float32", random.floats(5, 48), pitch=50)
    x = both.read()[:, :16]
    ops.copy_rows(columns_of(both, 0, 16), 2.0, columns_of(both, 16, 32))
    assert np.array_equal(both.read()[:, 16:32], x * 2)
    both.check()
    with pytest.raises(InputError, match=r"out: expected memory of its own"):
        ops.copy_rows(columns_of(both, 0, 16), 2.0, columns_of(both, 15, 31))


def test_another_gpu():
    x = bf16(4, 64)
    w = bf16(16, 64)
    if not emulated():
        import torch

        if torch.cuda.device_count() < 2:
            pytest.skip("one GPU")
        w = w.to("cuda:1")
    else:
        w.device = (w.device[0], 1)
    with pytest.raises(
        InputError,
        match=r"w: expected memory of cuda:0, where x is, got cuda:1|different CUDA device",
    ):
        ops.linear(x, w, out=empty((4, 16)))


def test_float32_attention_over_more_keys_than_fit():
    q, keys = f32(1, 1, 8), Guarded((1, 60000, 8), "float32").array
    with pytest.raises(InputError, match="keys: attention in float32 keeps the scores"):
        ops.attention(q, keys, Guarded((1, 60000, 8), "float32").array, i32(1), empty((1, 1, 8)))
    attention()  # and nothing of it is left

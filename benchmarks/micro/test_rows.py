"""Norms, softmax, scaling, RoPE and rounding rows at SmolVLA's shapes: bound by caches, so in GB/s.

One thread, one ISA's own kernel at a time; `share` is of libc's memcpy of as many float32 values.
"""

from __future__ import annotations

import pytest

from benchmarks.micro.variants import isas
from benchmarks.shapes import HEAD_DIM, NORMS, ROPE, ROWS, SOFTMAX
from smolvla_edge import _core

# (op, rows, columns, whether its result is bfloat16; of quantize_rows, whether its source is)
CASES = [
    *((op, rows, columns, bf16) for op, rows, columns in NORMS for bf16 in (False, True)),
    *(("softmax", rows, keys, False) for rows, keys in SOFTMAX),
    *(("softmax_bf16", rows, keys, True) for rows, keys in SOFTMAX),
    *(("scale_rows", rows, HEAD_DIM, False) for rows, _ in SOFTMAX),
    *(("quantize_rows", rows, columns, bf16) for rows, columns in ROWS for bf16 in (False, True)),
    *(("rope", rows, heads * HEAD_DIM, False) for rows, heads in ROPE),
]
VARIANTS = [(isa, *case) for case in CASES for isa in isas(case[0])]
VALUES_A_CALL = 1 << 20  # so many values pass in one timed call, however small the matrix


@pytest.mark.parametrize("isa, op, rows, columns, bf16", VARIANTS)
def test_rows(measure, ceilings, isa, op, rows, columns, bf16):
    loop = _core.KernelLoop(op, isa, rows, columns, bf16)
    calls = max(1, VALUES_A_CALL // (rows * columns))
    integers = op == "quantize_rows"
    read, written = ((2 if bf16 else 4), 1) if integers else (4, (2 if bf16 else 4))
    width = "bfloat16" if bf16 else "float32"
    measure(
        lambda: loop.run(calls),
        {
            "isa": isa,
            "op": op,
            "source" if integers else "result": width,
            "threads": 1,
            "shape": f"{rows} x {columns}",
        },
        bytes_moved=rows * columns * (read + written),
        ceiling=ceilings.copy(rows, columns),
        calls=calls,
    )

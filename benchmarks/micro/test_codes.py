"""Linear layers of integer codes at SmolVLA's shapes, every instruction set and format.

Rounding the rows to integers is part of the time, as in the engine. The ceiling is the loop of
vpdpbusd, whatever the instruction set: where it lacks that instruction its share says so.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.micro.variants import isas
from benchmarks.shapes import LINEARS
from smolvla_edge import _core
from smolvla_edge.codes import CodeFormat, round_to_nearest

FORMATS = (CodeFormat(8), *(CodeFormat(4, size) for size in (32, 64, 128)))
VARIANTS = [(isa, form) for form in FORMATS for isa in isas(f"dot{form.bits}")]
# What a recipe may hold as codes; the others stay in float32.
SHAPES = [shape for shape in LINEARS if shape.codes]


@pytest.mark.parametrize("isa, form", VARIANTS, ids=lambda v: getattr(v, "name", v))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name.replace(" ", "_"))
def test_codes(measure, ceilings, threads, tmp_path, isa, form, shape):
    random = np.random.default_rng(0)
    weight = random.standard_normal((shape.out, shape.depth), np.float32)
    codes, scales = round_to_nearest(weight, form).stored()
    path = tmp_path / "codes.bin"
    path.write_bytes(codes.tobytes() + scales.tobytes())
    ops = _core.CpuOps(threads, isa, "bfloat16")
    dtype = "I8" if form.bits == 8 else "U8"
    handle = ops.load_codes(str(path), dtype, shape.out, shape.depth, form.groups(shape.depth))
    x = ops.make_activation(random.standard_normal((shape.rows, shape.depth), np.float32))
    y = ops.make_activation(np.zeros((shape.rows, shape.out), np.float32))
    info = {"isa": isa, "format": form.name, "threads": threads, "loop": "int8"}
    measure(
        lambda: ops.linear(handle, x, y),
        {**info, "shape": shape.text},
        flops=shape.flops,
        ceiling=ceilings.loop("int8", ""),
    )

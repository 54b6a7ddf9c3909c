"""Linear layers at SmolVLA's shapes, every instruction set, precision and weight storage."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.micro.variants import forms
from benchmarks.shapes import LINEARS
from benchmarks.workers.ours_ops import round_bf16, to_bf16
from smolvla_edge import _core

# (ISA, what it computes in, what the weights are stored in)
VARIANTS = [(*form, "BF16") for form in forms()]
VARIANTS += [(*form, "F32") for form in forms() if form[1] == "float32"]


@pytest.mark.parametrize("isa, compute, weights", VARIANTS)
@pytest.mark.parametrize("shape", LINEARS, ids=lambda s: s.name.replace(" ", "_"))
def test_linear(measure, ceilings, threads, tmp_path, isa, compute, weights, shape):
    random = np.random.default_rng(0)
    weight = round_bf16(random.standard_normal((shape.out, shape.depth), np.float32))
    path = tmp_path / "weight.bin"
    path.write_bytes(to_bf16(weight).tobytes() if weights == "BF16" else weight.tobytes())
    ops = _core.CpuOps(threads, isa, compute)
    handle = ops.load_linear(str(path), weights, shape.out, shape.depth)
    # Operands in the engine's own storage, as between two layers of the model.
    x = ops.make_activation(random.standard_normal((shape.rows, shape.depth), np.float32))
    y = ops.make_activation(np.zeros((shape.rows, shape.out), np.float32))
    loop, ceiling = ceilings.products(compute, isa)
    info = {"isa": isa, "compute": compute, "weights": weights, "threads": threads, "loop": loop}
    measure(
        lambda: ops.linear(handle, x, y),
        {**info, "shape": shape.text},
        flops=shape.flops,
        ceiling=ceiling,
    )

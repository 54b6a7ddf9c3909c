"""Attention with softmax at SmolVLA's shapes, every instruction set and precision."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.micro.variants import forms
from benchmarks.shapes import ATTENTIONS, HEAD_DIM
from smolvla_edge import _core


@pytest.mark.parametrize("isa, compute", forms())
@pytest.mark.parametrize("shape", ATTENTIONS, ids=lambda s: s.name.replace(" ", "_"))
def test_attention(measure, ceilings, threads, isa, compute, shape):
    random = np.random.default_rng(0)
    ops = _core.CpuOps(threads, isa, compute)
    kv = ops.make_kv(shape.kv_heads, HEAD_DIM, shape.keys)
    width = shape.kv_heads * HEAD_DIM
    k, v = (random.standard_normal((shape.keys, width), np.float32) for _ in range(2))
    ops.store_kv(kv, k, v, 0)
    q = random.standard_normal((shape.rows, shape.heads * HEAD_DIM), np.float32)
    lengths = np.array(shape.lengths, np.int32)
    # As in the engine: results are stored activations, queries in the vision tower only.
    source = ops.make_activation(q) if shape.heads == shape.kv_heads else q
    out = ops.make_activation(np.zeros_like(q))
    loop, ceiling = ceilings.products(compute, isa)
    measure(
        lambda: ops.attention(kv, source, lengths, out, shape.heads, shape.kv_heads),
        {"isa": isa, "compute": compute, "threads": threads, "loop": loop, "shape": shape.text},
        flops=shape.flops,
        ceiling=ceiling,
    )

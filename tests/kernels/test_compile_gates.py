"""Every kernel compiled for every target, without a GPU, and held to kernel_gates.py."""

from __future__ import annotations

import dataclasses

import pytest
from needs import needs

from smolvla_edge.errors import BackendError

with needs("torch", "triton"):
    import torch
    import triton
    import triton.language as tl
    from kernel_gates import GATES, MADE_WITH

    from smolvla_edge.kernels.cases import CASES, Operands
    from smolvla_edge.kernels.cubin import ARCHS, compile_for

BY_NAME = {case.text: case for case in CASES}
same_compiler = pytest.mark.skipif(
    triton.__version__ != MADE_WITH,
    reason=f"the table is of Triton {MADE_WITH}, this is {triton.__version__}",
)


def launch(name, dtype=torch.float16, tile=None):
    return BY_NAME[name].launch(Operands("meta", dtype), tile)


def test_the_table_has_every_kernel_and_target():
    assert {name.split(":")[0] for name in GATES} == {case.kernel for case in CASES}
    assert all(tuple(gates) == ARCHS for gates in GATES.values())


@same_compiler
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", GATES, ids=lambda name: name.replace(": ", "-").replace(" ", "_"))
def test_a_kernel_keeps_to_the_table(name, arch):
    assert not GATES[name][arch].violations(compile_for(launch(name), arch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "name", [n for n in GATES if BY_NAME[n].kernel not in ("round_rows", "flow_step")]
)
def test_the_other_dtypes_compile_for_orin(name, dtype):
    cubin = compile_for(launch(name, dtype), 87)
    assert cubin.spills == 0
    assert cubin.shared <= 163 * 1024  # what a block may have there


@pytest.mark.parametrize("name", ["round_rows: vision down", "flow_step: guided"])
def test_what_must_have_torchs_bits_has_no_fma(name):
    """A multiply and an add fused into one would round once where the reference rounds twice."""
    ptx = compile_for(launch(name), 87).ptx
    assert "mul.rn.f32" in ptx and "fma.rn.f32" not in ptx
    fused = compile_for(dataclasses.replace(launch(name), fuse=True), 87).ptx
    assert "mul.rn.f32" not in fused  # so that the line above can fail


def test_a_kernel_that_spills_fails_its_gate():
    tile = {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 1, "num_stages": 2}
    name = "linear_w4a16: expert gate and up"
    found = GATES[name][87].violations(compile_for(launch(name, tile=tile), 87))
    assert found[0].startswith("linear_w4a16 on sm_87: expected no spills, got ")


@triton.jit
def _without_dot(x, gate, up, out, rows, DEPTH: tl.constexpr, OUT: tl.constexpr,
                 BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for k in range(DEPTH):
        total += tl.load(x + k).to(tl.float32) * tl.load(gate + n * DEPTH + k).to(tl.float32)
    tl.store(out + n, total.to(out.dtype.element_ty))


def test_a_kernel_without_tensor_cores_fails_its_gate():
    broken = dataclasses.replace(launch("swiglu: expert"), kernel=_without_dot)
    found = GATES["swiglu: expert"][90].violations(compile_for(broken, 90))
    assert found == ["swiglu on sm_90: expected HGMMA in the code, got none"]


@triton.jit
def _uncompilable(x, gate, up, out, rows, DEPTH: tl.constexpr, OUT: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    tl.store(out + tl.arange(0, 3), 0.0)  # a range must be a power of two


def test_a_kernel_that_stops_compiling_is_named_with_its_target():
    broken = dataclasses.replace(launch("swiglu: expert"), kernel=_uncompilable)
    with pytest.raises(BackendError, match="swiglu: sm_110 failed to compile"):
        compile_for(broken, 110)

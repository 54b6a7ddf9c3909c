"""What the operations refuse, what they are without Triton, and what torch makes of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from smolvla_edge import kernels
from smolvla_edge.errors import BackendError, InputError, MissingExtraError


@pytest.mark.without_triton
@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_the_package_imports_without_it_and_an_operation_names_the_extra(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None"
        + """
import smolvla_edge, smolvla_edge.kernels
from smolvla_edge.errors import MissingExtraError, SmolVLAEdgeError
assert issubclass(MissingExtraError, SmolVLAEdgeError)
try:
    import smolvla_edge.kernels.swiglu
except MissingExtraError as error:
    print(error)
"""
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'smolvla-edge[triton]'" in run.stdout, run.stderr


def linear_operands():
    import torch

    x = torch.randn(50, 720, generator=torch.Generator().manual_seed(1))
    return x, torch.zeros(96, 360, dtype=torch.uint8), torch.ones(96, 12, dtype=torch.float16)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x, c, s: ((x, c[:, :300], s), {}), r"codes: .*\[any, 360\], got \[96, 300\]"),
        (lambda x, c, s: ((x, c.int(), s), {}), "codes: expected uint8, got int32"),
        (lambda x, c, s: ((x, c, s[:, :11]), {}), r"scales: .*\[96, 12\], got \[96, 11\]"),
        (lambda x, c, s: ((x, c, s.float()), {}), "scales: expected float16, got float32"),
        (lambda x, c, s: ((x.double(), c, s), {}), "x: expected float16 or bfloat16 or float32"),
        (lambda x, c, s: ((x.T.contiguous().T, c, s), {}), "x: expected a contiguous tensor"),
        (lambda x, c, s: ((x[0], c, s), {}), r"at least 2 dimensions, got shape \[720\]"),
        (lambda x, c, s: ((x, c, s.to("meta")), {}), "scales: expected a tensor on cpu, got meta"),
        (lambda x, c, s: ((x, c, s), {"group_size": 48}), "group_size: .*got 48"),
        (lambda x, c, s: ((x, c, s), {"activation": "relu"}), "activation: .*got 'relu'"),
        (lambda x, c, s: ((x, c, s), {"bias": x[0]}), r"bias: .*\[96\], got \[720\]"),
        (lambda x, c, s: ((x, c, s), {"out": x}), r"out: .*\[50, 96\], got \[50, 720\]"),
        (lambda x, c, s: ((x, c, s), {"use": "cuda"}), "use: expected one of .*got 'cuda'"),
    ],
)  # fmt: skip
def test_w4a16_refuses(change, words):
    from smolvla_edge.kernels.linear_w4a16 import linear_w4a16

    given, more = change(*linear_operands())
    with pytest.raises(InputError, match=words):
        linear_w4a16(*given, **{"group_size": 64, **more})


def test_the_others_refuse():
    import torch

    from smolvla_edge.kernels.attention_gqa import attention_gqa
    from smolvla_edge.kernels.flow_step import flow_step
    from smolvla_edge.kernels.linear_w8a8 import linear_w8a8, round_rows
    from smolvla_edge.kernels.rmsnorm_linear import rmsnorm_linear
    from smolvla_edge.kernels.swiglu import swiglu

    x, q = torch.ones(4, 64), torch.ones(1, 4, 6, 64)
    whole = torch.ones(4, 64, dtype=torch.int8)
    refusals = [
        (lambda: linear_w8a8(x, x[:, 0], whole, x[:, 0]), "x: expected int8, got float32"),
        (lambda: linear_w8a8(whole, x[0], whole, x[:, 0]), r"x_scales: .*\[4\], got \[64\]"),
        (lambda: round_rows(x, factors=x[:, 0]), r"factors: .*\[64\], got \[4\]"),
        (lambda: round_rows(torch.ones(1, 65537)), "at most 65536 values, got 65537"),
        (lambda: rmsnorm_linear(x, None, x.half(), eps=1e-5), "weight: expected float32, got flo"),
        (lambda: swiglu(x, x, x[:3]), r"up: expected shape \[4, 64\], got \[3, 64\]"),
        (lambda: attention_gqa(q, *[q[:, :, :4].contiguous()] * 2), "multiple of 4 heads"),
        (lambda: attention_gqa(q.transpose(1, 2), q, q), "q: expected a contiguous tensor"),
        (
            lambda: attention_gqa(q, q, q, lengths=torch.ones(1, 4).long()),
            "lengths: expected int32",
        ),
        (lambda: flow_step(x, x, dt=1.0, previous=x), "expected both or neither, got one"),
        (lambda: flow_step(x, x.half(), dt=1.0), "v: expected float32, got float16"),
    ]
    for call, words in refusals:
        with pytest.raises(InputError, match=words):
            call()


def test_triton_on_cpu_tensors_is_refused_and_auto_is_torch():
    import torch

    from smolvla_edge.kernels.linear_w4a16 import linear_w4a16

    given = linear_operands()
    with pytest.raises(BackendError, match="expected tensors on a CUDA device, got cpu"):
        linear_w4a16(*given, group_size=64, use="triton")
    results = [linear_w4a16(*given, group_size=64, use=use) for use in ("auto", "torch")]
    assert torch.equal(*results)


def test_torch_compile_and_opcheck_accept_the_operators():
    import torch

    from smolvla_edge.kernels.flow_step import flow_step
    from smolvla_edge.kernels.linear_w4a16 import linear_w4a16

    x, codes, scales = linear_operands()
    v = torch.ones(50, 96)

    def two(x, v):
        return flow_step(linear_w4a16(x, codes, scales, group_size=64), v, dt=-0.1)

    compiled = torch.compile(two, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, v), two(x, v))
    given = (x, codes, scales, 64, None, "none", None, None, torch.empty(50, 96), False)
    torch.library.opcheck(torch.ops.smolvla_edge.linear_w4a16.default, given)


def test_the_model_asks_for_kernels_on_a_gpu_only_and_not_inside_plain_torch():
    import torch

    class OnGpu:
        is_cuda = True

    with torch.no_grad():
        assert not kernels.replace_torch(torch.ones(1))
        assert kernels.replace_torch(OnGpu())
        with kernels.plain_torch():
            assert not kernels.replace_torch(OnGpu())
        assert kernels.replace_torch(OnGpu())
    assert not kernels.replace_torch(OnGpu())  # the kernels have no backward pass
    assert issubclass(MissingExtraError, ImportError)

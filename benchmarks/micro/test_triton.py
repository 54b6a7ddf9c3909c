"""Triton kernels beside torch at SmolVLA's shapes, on the GPU: one CUDA graph of launches each.

    pytest -m gpu benchmarks/micro/test_triton.py

Warm L2, float16. The rival is what torch has for the same work: cuBLAS in float16 for the integer
linears (and bitsandbytes' NF4 for 4 bits), its own fused attention, plain operations for the rest.
Unrun: no GPU was at hand.
"""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="triton is not installed (extra triton)")

from smolvla_edge.kernels.cases import CASES, Operands  # noqa: E402  (it needs both)

F = torch.nn.functional
pytestmark = pytest.mark.gpu
CALLS = 50  # in one graph: the replay's own microseconds are divided by so many


@pytest.fixture(autouse=True)
def gpu():
    if not torch.cuda.is_available():
        if os.environ.get("SMOLVLA_REQUIRE_GPU") == "1":
            pytest.fail("SMOLVLA_REQUIRE_GPU=1, and torch finds no CUDA device")
        pytest.skip("torch finds no CUDA device")


def graph_of(call):
    """A call that replays `CALLS` of `call` and waits for them."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(CALLS):
            call()

    def replay():
        graph.replay()
        torch.cuda.synchronize()

    return replay


def in_torch(launch):
    """The same work in torch's own operations, in float16, on fresh operands."""
    given, depth, out = launch.arguments, launch.constants.get("DEPTH"), launch.constants.get("OUT")
    make = Operands("cuda", torch.float16)
    if launch.name in ("linear_w4a16", "linear_w8a8"):
        x, weight = make.floats(given["rows"], depth), make.floats(out, depth)
        return lambda: F.linear(x, weight)
    if launch.name == "attention_gqa":
        q, k, v = (given[name].transpose(1, 2).contiguous() for name in "qkv")
        return lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
    if launch.name == "rmsnorm_linear":
        x, gamma, weight = (given[name] for name in ("x", "gamma", "weight"))
        return lambda: F.linear(F.rms_norm(x, (depth,), gamma, 1e-5), weight)
    if launch.name == "swiglu":
        x, gate, up = (given[name] for name in ("x", "gate", "up"))
        return lambda: F.silu(F.linear(x, gate)) * F.linear(x, up)
    operator = getattr(torch.ops.smolvla_edge, launch.name)
    known = {**given, "triton": False}
    wanted = {a.name: known[a.name] for a in operator.default._schema.arguments}
    return lambda: operator(**wanted)


def in_nf4(launch):
    """bitsandbytes' NF4 in blocks of 64, which computes in float16 too."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    depth, out = launch.constants["DEPTH"], launch.constants["OUT"]
    layer = bitsandbytes.nn.Linear4bit(
        depth, out, bias=False, compute_dtype=torch.float16, quant_type="nf4"
    ).cuda()
    x = Operands("cuda", torch.float16).floats(launch.arguments["rows"], depth)
    return lambda: layer(x)


VARIANTS = [(case, kind) for case in CASES for kind in ("triton", "torch")]
VARIANTS += [(case, "nf4") for case in CASES if case.kernel == "linear_w4a16"]


@pytest.mark.parametrize("case, kind", VARIANTS, ids=lambda v: getattr(v, "text", v))
def test_triton(measure, case, kind):
    launch = case.launch(Operands("cuda", torch.float16), None)
    with torch.no_grad():
        call = {"triton": lambda: launch.run, "torch": lambda: in_torch(launch),
                "nf4": lambda: in_nf4(launch)}[kind]()  # fmt: skip
        moved = sum(x.nbytes for x in launch.arguments.values() if isinstance(x, torch.Tensor))
        measure(
            graph_of(call),
            {"kernel": case.kernel, "shape": case.key, "by": kind, "dtype": "float16",
             "device": torch.cuda.get_device_name(), "l2": "warm"},
            ceiling=None,
            flops=case.flops,
            bytes_moved=0.0 if case.flops else moved,
            calls=CALLS,
        )  # fmt: skip

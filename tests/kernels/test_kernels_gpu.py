"""The kernels on a real GPU, at every shape of cases.py: unrun so far, no GPU was at hand.

pytest -m gpu tests/kernels                          skipped, with the reason, without a GPU
SMOLVLA_REQUIRE_GPU=1 pytest -m gpu tests/kernels    an error there
"""

from __future__ import annotations

import dataclasses
import os

import pytest
from needs import needs

with needs("torch", "triton"):
    import torch

    from smolvla_edge.kernels.cases import CASES, Operands

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu():
    if not torch.cuda.is_available():
        if os.environ.get("SMOLVLA_REQUIRE_GPU") == "1":
            pytest.fail("SMOLVLA_REQUIRE_GPU=1, and torch finds no CUDA device")
        pytest.skip("torch finds no CUDA device")


def poison(launch):
    """Fill what the launch writes with NaN, or with -128, which no code is."""
    for name in ("out", "scales") if launch.name == "round_rows" else ("out",):
        written = launch.arguments[name]
        written.fill_(float("nan") if written.is_floating_point() else -128)


def operands_of(launch):
    """The launch's operands in the order of its operator's schema, by name."""
    schema = getattr(torch.ops.smolvla_edge, launch.name).default._schema
    known = {**launch.arguments, "group_size": launch.constants.get("GROUP"),
             "activation": launch.constants.get("ACTIVATION"), "triton": False}  # fmt: skip
    return {argument.name: known[argument.name] for argument in schema.arguments}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text)
def test_a_kernel_against_its_reference(case, dtype):
    launch = case.launch(Operands("cuda", dtype), None)
    poison(launch)
    launch.run()
    got = launch.arguments["out"].clone()
    # The reference computes in float32 (sums of integers in float64), where TF32 must be off.
    torch.backends.cuda.matmul.allow_tf32 = False
    wanted = operands_of(launch)
    poison(launch)
    getattr(torch.ops.smolvla_edge, launch.name)(**wanted)
    want = launch.arguments["out"]
    if not launch.fuse:
        assert torch.equal(got, want)
        return
    scale = want.float().abs().max()
    bound = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 2e-5}[dtype]
    worst = ((got.float() - want.float()).abs().max() / scale).item()
    assert worst <= bound, f"{case.text}: {worst:.2e} of the largest result, bound {bound:.0e}"


def test_a_captured_graph_gives_what_a_launch_gives():
    launch = next(c for c in CASES if c.text == "linear_w4a16: expert down").launch(
        Operands("cuda", torch.float16), None
    )
    launch.run()
    eager = launch.arguments["out"].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch.run()
    poison(launch)
    graph.replay()
    assert torch.equal(launch.arguments["out"], eager)


def test_operands_on_the_second_of_two_devices():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    case = next(c for c in CASES if c.text == "flow_step: plain")
    launch = case.launch(Operands("cuda:1", torch.float32), None)
    dataclasses.replace(launch).run()
    assert torch.isfinite(launch.arguments["out"]).all()

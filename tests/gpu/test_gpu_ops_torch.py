"""With torch on a real GPU: results that torch makes, its streams, its graphs, and its own
operations as a second reference."""

from __future__ import annotations

import numpy as np
import pytest
from device_arrays import emulated

from smolvla_edge import ops
from smolvla_edge.codes import CodeFormat, round_to_nearest
from smolvla_edge.errors import InputError

pytestmark = pytest.mark.gpu


@pytest.fixture
def torch(world):
    if emulated():
        pytest.skip("torch tensors need a real GPU")
    return pytest.importorskip("torch")


@pytest.fixture
def layer(torch):
    """x, w and bias of the expert's first projection."""
    print(f"torch.manual_seed({torch.seed()})")
    x = torch.randn(50, 720, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(1600, 720, device="cuda", dtype=torch.bfloat16)
    return x, w, torch.randn(1600, device="cuda")


BF16, CUT = 2.0**-8, 2.0**-23  # bounds.py


def close(got, want, slack) -> None:
    """One rounding to bfloat16 from what torch computes in float64, and what else there may be."""
    assert got.shape == want.shape and bool(got.isfinite().all())
    off = (got.double() - want).abs()
    assert bool((off <= BF16 * want.abs() + 1.01 * slack).all()), float(off.max())


def test_a_new_result(torch, layer):
    x, w, bias = layer
    y = ops.linear(x, w, bias)
    assert (y.dtype, y.shape, y.device) == (torch.bfloat16, (50, 1600), x.device)
    want = torch.nn.functional.linear(x.double(), w.double(), bias.double())
    close(y, want, (1.25 * 720 + 4) * CUT * (x.double().abs() @ w.double().abs().T + bias.abs()))
    assert ops.linear(x.float(), w.float()).dtype == torch.float32


@pytest.mark.parametrize("length", [None, 163])
def test_attention_against_sdpa(torch, length):
    q = torch.randn(50, 15, 64, device="cuda", dtype=torch.bfloat16)
    keys, values = (torch.randn(5, 291, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    y = ops.attention(q, keys, values, length)
    wide = [x[:, :length].double().repeat_interleave(3, 0) for x in (keys, values)]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    want = sdpa(q.double().transpose(0, 1), *wide).transpose(0, 1)
    # The softmax in bfloat16 and scores that are off by 2^-16: of an average of |values|.
    average = sdpa(q.double().transpose(0, 1), wide[0], wide[1].abs()).transpose(0, 1)
    close(y, want, (BF16 + 2.0**-13) * (1 + BF16) * average)


def test_norms_against_torch(torch):
    x = torch.randn(241, 960, device="cuda")
    weight, bias = (torch.randn(960, device="cuda") for _ in range(2))
    want = torch.nn.functional.layer_norm(x, (960,), weight, bias, 1e-6)
    torch.testing.assert_close(ops.layer_norm(x, weight, bias), want, rtol=1e-5, atol=1e-5)
    want = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight
    torch.testing.assert_close(ops.rms_norm(x, weight), want, rtol=1e-5, atol=1e-5)
    assert ops.rms_norm(x, weight, dtype="bfloat16").dtype == torch.bfloat16


def test_rows_of_integers(torch, layer):
    x = layer[0]
    rows = ops.quantize_rows(x)
    off = (rows.codes.float() * rows.scales[:, None] - x.float()).abs()
    assert bool((off <= 0.5001 * rows.scales[:, None]).all())
    codes = round_to_nearest(layer[1].float().cpu().numpy(), CodeFormat(8))
    w = ops.pack_w8(*codes.stored())
    # Through integers that the caller made, or that the call made for itself: the same bytes.
    assert torch.equal(ops.linear_w8a8(rows, w), ops.linear_w8a8(x, w))


def test_a_parameter_needs_no_grad(torch, layer):
    x, _w, _ = layer
    module = torch.nn.Linear(720, 64, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(InputError, match="w: expected a tensor without a gradient"):
        ops.linear(x, module.weight)
    with torch.no_grad():
        assert ops.linear(x, module.weight, module.bias.float()).shape == (50, 64)


def test_the_current_stream_is_used(torch, layer):
    """A kernel that waits behind a long one reads what that wrote."""
    x, w, _ = layer
    want = ops.linear(x * 2, w)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        late = x.clone()
        torch.cuda._sleep(200_000_000)  # a tenth of a second
        late.mul_(2)
        y = ops.linear(late, w)
        assert not side.query()  # the call came back while the stream still sleeps
    side.synchronize()
    assert torch.equal(y, want)


def test_a_stream_waits_for_tensors_of_another(torch, layer):
    x, w, _ = layer
    want = ops.linear(x * 2, w)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    late = x.clone()
    torch.cuda._sleep(200_000_000)
    late.mul_(2)
    y = ops.linear(late, w, stream=side)
    side.synchronize()
    assert torch.equal(y, want)
    for other in (side.cuda_stream, side):
        out = torch.empty_like(want)
        ops.linear(late, w, out=out, stream=other)
        side.synchronize()
        assert torch.equal(out, want)


def recorded(torch, call):
    """A graph of one call, which ran once before: kernels are loaded when they are first used."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


def test_a_graph_of_operators_reads_new_inputs(torch, layer):
    x, w, bias = layer
    codes = round_to_nearest(w.float().cpu().numpy(), CodeFormat(4, 64))
    packed = ops.pack_w4(*codes.stored(), 64)
    integers = ops.pack_w8(*round_to_nearest(w.float().cpu().numpy(), CodeFormat(8)).stored())
    q = torch.randn(50, 15, 64, device="cuda", dtype=torch.bfloat16)
    keys, values = (torch.randn(5, 291, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    weight = torch.ones(720, device="cuda")
    calls = {
        "linear": lambda: ops.linear(x, w, bias, "gelu_tanh"),
        "linear_w4a16": lambda: ops.linear_w4a16(x, packed, bias),
        "linear_w8a8": lambda: ops.linear_w8a8(x, integers),
        "rms_norm": lambda: ops.rms_norm(x.float(), weight),
        "attention": lambda: ops.attention(q, keys, values),
    }
    for name, call in calls.items():
        graph, result = recorded(torch, call)
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            q.copy_(torch.randn_like(q))
            result.fill_(float("nan"))
            graph.replay()
            want = call()
            torch.cuda.synchronize()
            assert torch.equal(result, want), name


def test_a_graph_steps_through_a_schedule(torch):
    x, v = (torch.randn(50, 32, device="cuda") for _ in range(2))
    schedule = torch.randn(10, 3, device="cuda")
    step = torch.zeros(1, dtype=torch.int32, device="cuda")
    want = x.double() + schedule[:, 0].double().sum() * v.double()

    def one():
        ops.flow_step(x, v, schedule, step)
        ops.advance(step)

    start = x.clone()
    graph, _ = recorded(torch, one)
    x.copy_(start), step.zero_()
    for _ in range(10):
        graph.replay()
    torch.cuda.synchronize()
    assert step.item() == 10
    bound = 20 * 2.0**-24 * (start.abs().double() + schedule[:, 0].abs().sum() * v.abs())
    assert bool(((x.double() - want).abs() <= bound).all())


def test_nothing_is_allocated_when_out_is_given(torch, layer):
    x, w, bias = layer
    out = ops.linear(x, w, bias)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(20):
        ops.linear(x, w, bias, out=out)
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_threads_share_nothing_but_the_gpu(torch, layer):
    from concurrent.futures import ThreadPoolExecutor

    x, w, _ = layer
    want = [ops.linear(x * k, w) for k in range(1, 5)]
    torch.cuda.synchronize()

    def work(k: int):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            stream.wait_stream(torch.cuda.default_stream())
            results = [ops.linear(x * k, w) for _ in range(50)]
        stream.synchronize()
        return all(torch.equal(y, want[k - 1]) for y in results)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(1, 5)))


def test_a_numpy_array_and_a_cpu_tensor_are_refused(torch, layer):
    _, w, _ = layer
    with pytest.raises(InputError, match="x: expected an array in the memory of a CUDA GPU"):
        ops.linear(np.ones((4, 720), np.float32), w, out=w)
    with pytest.raises(InputError, match="x: expected an array in the memory of a CUDA GPU"):
        ops.linear(torch.ones(4, 720), w, out=w)


def test_cupy(torch):
    cupy = pytest.importorskip("cupy")
    x, w = cupy.random.rand(4, 40, dtype="float32"), cupy.random.rand(17, 40, dtype="float32")
    y = ops.linear(x, w)
    assert isinstance(y, cupy.ndarray)
    cupy.testing.assert_allclose(y, x @ w.T, rtol=1e-5)
    with pytest.raises(InputError, match="CuPy but for bfloat16"):
        ops.copy_rows(x)

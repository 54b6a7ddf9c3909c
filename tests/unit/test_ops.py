"""smolvla_edge.ops without a GPU: builds without kernels, whose stream, who makes results."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from capsule_helpers import Producer

from smolvla_edge import ops
from smolvla_edge.backends.native import load_core
from smolvla_edge.errors import BackendError, InputError
from smolvla_edge.ops.arrays import Caller, call

X = Producer((4, 8))
CODES = {4: (np.zeros((8, 32), np.uint8), np.ones((8, 2), np.float16), 32),
         8: (np.zeros((8, 64), np.int8), np.ones(8, np.float32))}  # fmt: skip
WEIGHT = {bits: ops.PackedWeight(bits, 8, 64, None, False, 0, 0, None) for bits in (4, 8)}
CALLS = {
    "linear": lambda: ops.linear(X, X, out=X),
    "linear_w4a16": lambda: ops.linear_w4a16(X, WEIGHT[4], out=X),
    "linear_w8a8": lambda: ops.linear_w8a8(X, WEIGHT[8], out=X),
    "pack_gated": lambda: ops.pack_gated(X, X, X),
    "pack_w4": lambda: ops.pack_w4(*CODES[4]),
    "pack_w8": lambda: ops.pack_w8(*CODES[8]),
    "attention": lambda: ops.attention(X, X, X, X, X),
    "store_kv": lambda: ops.store_kv(X, X, X, X),
    "scatter_kv": lambda: ops.scatter_kv(X, X, X, X, X),
    "pick_rows": lambda: ops.pick_rows(X, X, X),
    "put_rows": lambda: ops.put_rows(X, X, X),
    "add_rows": lambda: ops.add_rows(X, X, out=X),
    "compare_rows": lambda: ops.compare_rows(X, X, out=X),
    "block_change": lambda: ops.block_change(X, X, 2, 2, X),
    "copy_blocks": lambda: ops.copy_blocks(X, X, 2, X),
    "rope": lambda: ops.rope(X, X, X),
    "rope_store": lambda: ops.rope_store(X, X, X, X, X, X, X),
    "rms_norm": lambda: ops.rms_norm(X, X, out=X),
    "layer_norm": lambda: ops.layer_norm(X, X, X, out=X),
    "quantize_rows": lambda: ops.quantize_rows(X),
    "quantized_row_bytes": lambda: ops.quantized_row_bytes(64),
    "copy_rows": lambda: ops.copy_rows(X, out=X),
    "flow_step": lambda: ops.flow_step(X, X, X, X),
    "advance": lambda: ops.advance(X),
    "letterbox": lambda: ops.letterbox(X, 8, 8, X),
    "patchify": lambda: ops.patchify(X, 2, X),
    "pixel_shuffle": lambda: ops.pixel_shuffle(X, 2, X),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_build_without_kernels_says_so(monkeypatch, name):
    monkeypatch.delattr(load_core(), "cuda_ops", raising=False)
    assert not ops.available()
    with pytest.raises(BackendError, match=r"expected a build with CUDA kernels.*SMOLVLA_CUDA=ON"):
        CALLS[name]()


def test_every_operator_is_called_above():
    functions = {name for name in ops.__all__ if not name[0].isupper()} - {"available"}
    assert functions == set(CALLS)
    assert ops.available() == hasattr(load_core(), "cuda_ops")


def test_importing_brings_no_array_library():
    code = "import smolvla_edge.ops, sys; print([m for m in ('torch', 'cupy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- whose stream, who makes results --------------------------------------------------------------


class Tensor:
    """What `Caller` asks of torch.Tensor."""

    is_cuda, requires_grad = True, False

    def __init__(self, device: int = 0, **other):
        self.device = SimpleNamespace(index=device)
        self.__dict__.update(other)

    def detach(self):
        return Tensor(self.device.index, detached=True)


class FakeTorch:
    Tensor, bfloat16, float32, int32 = Tensor, "bfloat16", "float32", "int32"

    def __init__(self):
        self.entered: list = []
        self.made: list = []
        self.grad = True
        self.cuda = SimpleNamespace(
            current_device=lambda: 0,
            current_stream=lambda device: SimpleNamespace(cuda_stream=100 + device.index),
            device=lambda device: self.enter(("device", device.index)),
            ExternalStream=lambda stream, device: stream,
            stream=lambda stream: self.enter(("stream", stream)),
        )

    def enter(self, what):
        self.entered.append(what)
        return nullcontext()

    def is_grad_enabled(self):
        return self.grad

    def empty(self, shape, dtype, device):
        self.made.append((shape, dtype, device.index))
        return Tensor(device.index)

    def full(self, shape, value, dtype, device):
        self.made.append((shape, value, dtype, device.index))
        return Tensor(device.index)


@pytest.fixture
def torch(monkeypatch):
    fake = FakeTorch()
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


def test_the_current_stream_of_torch(torch):
    caller = Caller(Tensor(), None)
    assert (caller.stream, caller.same_stream) == (100, Tensor)
    caller.empty([2, 3], "bfloat16")
    caller.full([4], 7)
    assert torch.made == [((2, 3), "bfloat16", 0), ((4,), 7, "int32", 0)]
    assert torch.entered == []


def test_a_given_stream_owns_what_is_made(torch):
    caller = Caller(Tensor(), 55)
    assert (caller.stream, caller.same_stream) == (55, None)
    caller.empty([2], "float32")
    assert torch.entered == [("stream", 55)]


def test_a_tensor_on_another_gpu(torch):
    caller = Caller(Tensor(1), None)
    assert caller.stream == 101
    with caller.device():
        assert torch.entered == [("device", 1)]


def test_a_tensor_in_the_cpus_memory_is_not_asked_for_a_stream(torch):
    x = Tensor()
    x.is_cuda = False
    assert Caller(x, None).stream == 0
    with pytest.raises(InputError, match="out: expected float32"):
        Caller(x, None).empty([2], "float32")


def test_tensors_that_want_a_gradient(torch, monkeypatch):
    seen = {}
    core = SimpleNamespace(op=lambda **arguments: seen.update(arguments))
    monkeypatch.setattr("smolvla_edge.ops.arrays.operators", lambda: core)
    wants = Tensor(requires_grad=True)
    for given in ({"x": wants}, {"terms": {"x": wants, "scale": 1.0}}):
        with pytest.raises(InputError, match="x: expected a tensor without a gradient"):
            call("op", Tensor(), None, **given)
    torch.grad = False
    call("op", Tensor(), None, x=wants, terms={"bias": wants, "scale": 2.0}, out=None)
    assert seen["x"].detached and seen["terms"]["bias"].detached
    assert seen["terms"]["scale"] == 2.0 and seen["out"] is None
    assert isinstance(seen["caller"], Caller)


class Ndarray:
    device = nullcontext()


@pytest.fixture
def cupy(monkeypatch):
    made, entered = [], []
    fake = SimpleNamespace(
        ndarray=Ndarray,
        made=made,
        entered=entered,
        cuda=SimpleNamespace(
            get_current_stream=lambda: SimpleNamespace(ptr=77),
            ExternalStream=lambda stream: entered.append(stream) or nullcontext(),
        ),
        empty=lambda shape, dtype: made.append((shape, dtype)) or Ndarray(),
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def test_cupy(cupy):
    caller = Caller(Ndarray(), None)
    assert (caller.stream, caller.same_stream) == (77, Ndarray)
    caller.empty([2, 3], "float32")
    Caller(Ndarray(), 5).empty([2], "int8")
    assert cupy.made == [((2, 3), "float32"), ((2,), "int8")] and cupy.entered == [5]
    with pytest.raises(InputError, match=r"out: expected bfloat16 \[2, 3\].*CuPy but for bfloat16"):
        caller.empty([2, 3], "bfloat16")


def test_of_other_libraries_nothing_is_made():
    caller = Caller(X, None)
    assert (caller.stream, caller.same_stream) == (0, None)
    with pytest.raises(InputError, match=r"out: expected float32 \[2\] in GPU memory"):
        caller.empty([2], "float32")
    with pytest.raises(InputError, match="lengths: expected int32"):
        caller.full([2], 3)


class CudaPythonStream:
    def __cuda_stream__(self):
        return (0, 31)


@pytest.mark.parametrize(
    ("stream", "address"),
    [
        (0, 0), (12, 12), (SimpleNamespace(cuda_stream=21), 21), (SimpleNamespace(ptr=22), 22),
        (CudaPythonStream(), 31), (SimpleNamespace(__cuda_stream__=(0, 32)), 32),
    ],
)  # fmt: skip
def test_streams(stream, address):
    assert Caller(X, stream).stream == address


@pytest.mark.parametrize("stream", ["main", -1, True, 1.5, SimpleNamespace(ptr="x")])
def test_what_is_no_stream(stream):
    with pytest.raises(InputError, match="stream: expected None, a stream of torch"):
        Caller(X, stream)


@pytest.mark.parametrize("columns", [0, 65537, 3.0])
def test_columns_of_integers(columns):
    with pytest.raises(InputError, match="columns: expected 1 to 65536"):
        ops.quantized_row_bytes(columns)

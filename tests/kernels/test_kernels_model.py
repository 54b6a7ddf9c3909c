"""The torch model with its work handed to the kernels' operators, computed by their references.

There is no GPU here, so the model is told that there is one; the operators then compute CPU tensors
with torch. What is shown is that the model hands over the right operands.
"""

from __future__ import annotations

import numpy as np
import pytest
from needs import needs

from smolvla_edge import kernels
from smolvla_edge.codes import CodeFormat, round_to_nearest
from smolvla_edge.policy import load
from smolvla_edge.rtc import Guidance
from smolvla_edge.synthetic import make_checkpoint

with needs("torch", "triton"):
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from smolvla_edge.model import flow, layers
    from smolvla_edge.model.coded import CodedWeight


class Watch(TorchDispatchMode):
    """Notes the operators of this package that are called."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function.namespace == "smolvla_edge":
            self.called.append(str(function).split(".")[1])
        return function(*arguments, **(keywords or {}))


@pytest.fixture
def handed_over(monkeypatch):
    """Turns the kernels on for CPU tensors; a list of the operators that were called follows."""
    for module in (flow, layers):
        monkeypatch.setattr(module, "replace_torch", lambda x: not torch.is_grad_enabled())
    with Watch() as watch, torch.no_grad():
        yield watch.called


def plain(call):
    with torch.enable_grad():
        return call().detach()


@pytest.mark.parametrize(
    "form", [CodeFormat(8), CodeFormat(8, input_scale=True), CodeFormat(4, 64)]
)
def test_a_linear_of_codes(handed_over, form):
    random = torch.Generator().manual_seed(2)
    read = round_to_nearest(torch.randn(96, 720, generator=random).numpy(), form)
    layer = layers.Linear(720, 96)
    layer.weight = torch.nn.Parameter(torch.from_numpy(read.weight()))
    layer.rounds_rows, layer.coded = True, CodedWeight.on("cpu", read)
    if form.input_scale:
        layer.input_scale = torch.rand(720, generator=random) + 0.5
    x = torch.randn(2, 25, 720, generator=random)
    got, want = layer(x), plain(lambda: layer(x))
    assert handed_over == ["round_rows", f"linear_w{form.bits}a{8 if form.bits == 8 else 16}"]
    # The model's own rounding of 127 / largest is torch's: now and then a code differs by one.
    assert (got - want).abs().max() < 0.02 * want.abs().max()
    assert (got - want).abs().median() < 1e-4 * want.abs().max()


def test_swiglu_and_attention(handed_over):
    random = torch.Generator().manual_seed(3)
    block = layers.SwiGLU(32, 48)
    x = torch.randn(1, 5, 32, generator=random)
    torch.testing.assert_close(block(x), plain(lambda: block(x)))
    q = torch.randn(2, 6, 4, 16, generator=random)
    k, v = (torch.randn(2, 9, 2, 16, generator=random) for _ in range(2))
    mask = (torch.rand(2, 6, 9, generator=random) < 0.5)[:, :, :9]
    mask[0, 2] = False
    got = layers.attend(q, k, v, mask)
    torch.testing.assert_close(got, plain(lambda: layers.attend(q, k, v, mask)))
    assert handed_over == ["swiglu", "attention_gqa"]


@pytest.mark.parametrize("guided", [False, True])
def test_the_flow_has_the_same_bits(handed_over, guided):
    random = torch.Generator().manual_seed(4)
    noise = torch.randn(2, 10, 6, generator=random)
    left = torch.randn(7, 4, generator=random).numpy()
    guidance = Guidance(left, 2, 6, "EXP", 5.0) if guided else None

    def run():
        return flow.integrate(lambda x, time, step: x.cos(), noise, 4, 12, guidance)

    got = run()
    assert handed_over == ["flow_step"] * 4
    assert torch.equal(got, plain(run))


def test_on_the_cpu_the_model_is_plain_torch_to_the_bit(tmp_path):
    policy = load(make_checkpoint(tmp_path / "tiny", "tiny"), backend="torch")
    frame = np.random.default_rng(6).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    images = {f"observation.images.camera{i}": frame for i in (1, 2)}

    def actions():
        return policy.predict(images, np.zeros(6, np.float32), "pick it up", seed=1).actions

    with Watch() as watch:
        usual = actions()
    assert not watch.called
    with kernels.plain_torch():
        assert actions().tobytes() == usual.tobytes()


@torch.no_grad()
def test_on_the_cpu_a_guided_flow_has_the_bytes_of_its_formula():
    random = torch.Generator().manual_seed(5)
    noise = torch.randn(2, 10, 6, generator=random)
    left = torch.randn(7, 4, generator=random)
    guidance = Guidance(left.numpy(), 2, 6, "EXP", 5.0)
    got = flow.integrate(lambda x, time, step: x.cos(), noise, 4, 12, guidance)
    x, target = noise, torch.zeros(2, 12, 6)
    target[:, :7, :4] = left
    weights = flow.pull_weights(guidance, 12)[:10, None]
    for step in range(4):
        time = 1.0 + step * -0.25
        v = x.cos()
        error = (target[:, :10] - (x - time * v)) * weights
        x = x + -0.25 * (v - flow.pull_strength(time, 5.0) * error)
    assert torch.equal(got, x)

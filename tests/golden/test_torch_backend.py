"""The torch backend: its seams agree with each other, and it refuses what it does not implement."""

from __future__ import annotations

import subprocess
import sys

import golden_support as support
import numpy as np
import pytest
from needs import needs

from smolvla_edge.backends import Backend
from smolvla_edge.errors import BackendError, InputError, NonFiniteError, PlanError
from smolvla_edge.plan import Cache, Plan, Skip

with needs("torch"):
    import torch
    import torch_runner

    from smolvla_edge.backends.torch import TorchBackend


@pytest.fixture(scope="module")
def backend(checkpoint) -> TorchBackend:
    opened = checkpoint("rtc_linear")
    return TorchBackend(opened.model, opened.tensors, opened.contract)


@pytest.fixture(scope="module")
def inputs(backend):
    """pixels, camera_mask, tokens, token_mask, state, noise of the case, without a batch axis."""
    observation = support.observation("rtc_linear")
    golden = support.golden("rtc_linear")
    pixels = torch_runner.pixels_of(observation, backend.config.resize)
    rest = ("camera_mask", "tokens", "token_mask", "state", "noise")
    assert "in.prev_chunk_left_over" in golden
    return torch.cat(pixels).numpy(), *(getattr(observation, name)[0] for name in rest)


def rtc_arguments() -> dict:
    call = support.CASES["rtc_linear"]["rtc"]
    previous = support.golden("rtc_linear")["in.prev_chunk_left_over"][0]
    return {
        "prev_chunk_left_over": previous,
        "inference_delay": call["inference_delay"],
        "execution_horizon": call["execution_horizon"],
    }


def test_is_a_backend(backend):
    assert isinstance(backend, Backend)
    info = backend.info()
    assert info["backend"] == "torch" and info["device"] == "cpu" and info["isa"]


def test_golden_through_the_backend(backend, inputs):
    """Guidance settings come from the checkpoint's rtc_config."""
    got = backend.trace(*inputs, **rtc_arguments())
    want = support.expected("rtc_linear")
    dead = ("mid.prefix_layer3", "mid.prefix_out_normed_unused")
    support.compare_all(got, {name: value for name, value in want.items() if name not in dead})


def test_stages_are_the_whole(backend, inputs):
    pixels, camera_mask, tokens, token_mask, state, noise = inputs
    whole = backend.sample_actions(*inputs, **rtc_arguments())
    images = backend.encode_images(pixels)
    rows = backend.prefill(images, camera_mask, tokens, token_mask, state)
    assert rows == support.golden("rtc_linear")["out.prefix_pad_masks"].sum()
    staged = backend.denoise(noise, **rtc_arguments())
    assert (staged == whole).all()


def test_horizon_is_a_shorter_chunk(backend, inputs):
    """Also under guidance, whose schedule refers to the whole chunk."""
    whole = backend.sample_actions(*inputs, **rtc_arguments())
    plan = Plan(steps=backend.config.num_steps, horizon=3)
    short = backend.sample_actions(*inputs, plan=plan, **rtc_arguments())
    assert short.shape == (3, backend.config.max_action_dim)
    support.compare("horizon", short, whole[:3])


@pytest.mark.parametrize(
    ("message", "plan"),
    [
        ("late_state", Plan(late_state=True)),
        ("remove cache", Plan(cache=Cache(threshold=0.1, keyframe_every=5, max_age=3))),
        (r"unknown 'top'; .* observation\.images", Plan(cache=Cache(0.1, 5, 3, ("top",)))),
        (r"rtc_config.*remove warm_start", Plan(warm_start=0.5)),
        (r"skip\.vision: layer 2 of 2", Plan(skip=Skip(vision=(0, 2)))),
        (r"skip\.vlm: layer 4 of 4", Plan(skip=Skip(vlm=(4,)))),
        (r"skip\.expert: layer 9 of 4", Plan(skip=Skip(expert=(9,)))),
        (r"skip\.reuse\[1\]: layer 4 of 4", Plan(steps=2, skip=Skip(reuse=((), (3, 4))))),
        ("at most the chunk's 8", Plan(horizon=9)),
    ],
)
def test_refuses_by_name(message, plan, backend, inputs):
    with pytest.raises(PlanError, match=message):
        backend.sample_actions(*inputs, plan=plan)
    with pytest.raises(PlanError, match=message):
        backend.trace(*inputs, plan=plan)


def test_refuses_bad_arrays(backend, inputs):
    pixels, camera_mask, tokens, token_mask, state, noise = inputs
    rest = (camera_mask, tokens, token_mask, state)
    with pytest.raises(InputError, match="noise"):
        backend.sample_actions(pixels, *rest, noise[:-1])
    with pytest.raises(InputError, match="tokens"):
        outside = np.full_like(tokens, backend.config.vocab)
        backend.sample_actions(pixels, camera_mask, outside, token_mask, state, noise)
    with pytest.raises(InputError, match="square"):
        backend.encode_images(pixels[:, :, :32])
    with pytest.raises(InputError, match="frame"):
        backend.predict([None], tokens, state[: backend.config.state_dim], noise)
    with pytest.raises(NonFiniteError):
        backend.sample_actions(pixels, *rest, np.full_like(noise, np.nan))


def test_denoise_needs_a_prefix(checkpoint, inputs):
    opened = checkpoint("base")
    fresh = TorchBackend(opened.model, opened.tensors, opened.contract)
    with pytest.raises(InputError, match="prefill"):
        fresh.denoise(inputs[-1])


@pytest.fixture
def tf32_allowed():
    """The settings, as a process leaves them that allows TF32 for models of its own."""
    knobs = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [knob.fp32_precision for knob in knobs]
    for knob in knobs:
        knob.fp32_precision = "tf32"
    yield lambda: [knob.fp32_precision for knob in knobs]
    for knob, value in zip(knobs, before, strict=True):
        knob.fp32_precision = value


def test_tf32_is_off_inside_and_left_alone_outside(backend, inputs, monkeypatch, tf32_allowed):
    """A GPU would round products to 10 bits where the process allows it."""
    encode, inside = backend.model.encode_image, []

    def spy(image):
        inside.extend(tf32_allowed())
        return encode(image)

    monkeypatch.setattr(backend.model, "encode_image", spy)
    backend.encode_images(inputs[0][:1])
    assert inside == ["ieee", "ieee"]
    assert tf32_allowed() == ["tf32", "tf32"]
    with pytest.raises(InputError):
        backend.encode_images(inputs[0][:, :, :32])
    assert tf32_allowed() == ["tf32", "tf32"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_refuses_an_absent_device(checkpoint):
    opened = checkpoint("base")
    with pytest.raises(BackendError, match="CUDA"):
        TorchBackend(opened.model, opened.tensors, opened.contract, device="cuda")


@pytest.mark.parametrize("module", ["smolvla_edge.backends.torch", "smolvla_edge.model"])
def test_without_torch_it_says_what_to_install(module):
    code = f"""
import sys
sys.modules["torch"] = None
from smolvla_edge.errors import MissingExtraError
try:
    import {module}
except MissingExtraError as error:
    assert "pip install" in str(error)
else:
    raise SystemExit("imported without torch")
"""
    subprocess.run([sys.executable, "-c", code], check=True)

"""The gate closes: each small mistake below is caught by the comparison that lets the truth pass.

Every mutation goes through the same pieces that the golden tests run, on both backends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import golden_support as support
import numpy as np
import pytest
from tokenizers import Tokenizer

from smolvla_edge.checkpoint import Checkpoint
from smolvla_edge.config import ModelConfig

Run = Callable[..., dict[str, np.ndarray]]


def run_torch(
    opened: Checkpoint,
    observation: support.Observation,
    config: ModelConfig | None = None,
    pixels: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    torch = pytest.importorskip("torch")
    import torch_runner

    from smolvla_edge.model import load_model

    model = load_model(config or opened.model, opened.tensors)
    images = None if pixels is None else list(torch.from_numpy(pixels).split(1))
    return torch_runner.trace(model, observation, images)


def run_native(
    opened: Checkpoint,
    observation: support.Observation,
    config: ModelConfig | None = None,
    pixels: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    import native_runner

    engine = native_runner.make_engine(opened, config=config)
    return native_runner.trace(engine, opened.model, observation, pixels=pixels)


@pytest.fixture(params=["torch", "native"])
def run(request) -> Run:
    return {"torch": run_torch, "native": run_native}[request.param]


def check(case: str, got: dict[str, np.ndarray]) -> None:
    """The comparison under test, on nothing but the real action dimensions."""
    name = "out.actions"
    support.compare(name, got[name], support.golden(case)[name])


def pixels_of(case: str) -> np.ndarray:
    """The golden pixels, [cams, 3, h, w]."""
    golden = support.golden(case)
    return np.concatenate([golden[f"mid.pixels.{i}"] for i in range(2)])


@pytest.fixture
def base(checkpoint) -> tuple[Checkpoint, support.Observation]:
    return checkpoint("base"), support.observation("base")


def test_truth_passes(run, base):
    check("base", run(*base))
    check("base", run(*base, pixels=pixels_of("base")))


def test_swapped_cameras(run, base):
    swapped = np.ascontiguousarray(pixels_of("base")[::-1])
    with pytest.raises(support.GoldenMismatchError):
        check("base", run(*base, pixels=swapped))


def test_rope_base_of_the_language_model(run, base):
    config = dataclasses.replace(base[0].model, rope_theta=100000.0)
    with pytest.raises(support.GoldenMismatchError):
        check("base", run(*base, config=config))


@pytest.mark.parametrize("newline", [True, False])
def test_missing_newline(newline, run, checkpoint, folder):
    case = "pipeline"
    path, observation = folder(case), support.observation(case)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer" / "tokenizer.json"))
    text = support.CASES[case]["task"] + ("\n" if newline else "")
    observation.tokens = np.array([tokenizer.encode(text).ids], np.int64)
    observation.token_mask = np.ones_like(observation.tokens, bool)
    got = run(checkpoint(case), observation)
    if newline:
        return check(case, got)
    with pytest.raises(support.GoldenMismatchError):
        check(case, got)


def test_double_resize(run, base):
    """A frame that somebody scaled to half its size before the letterbox gets it."""
    opened, observation = base
    frame = observation.frames[0]
    halved = frame.reshape(1, 3, 12, 2, 20, 2).mean((3, 5), dtype=np.float32)
    observation.frames[0] = halved
    with pytest.raises(support.GoldenMismatchError):
        check("base", run(opened, observation))


def test_dropped_padded_action_dimension(run, base):
    """Noise in one dimension that no robot has."""
    opened, observation = base
    observation.noise = observation.noise.copy()
    observation.noise[..., opened.model.action_dim] = 0
    with pytest.raises(support.GoldenMismatchError):
        check("base", run(opened, observation))


@pytest.mark.parametrize(
    "name",
    [
        "vision.patch.weight",
        "vision.layers.0.attn.v.weight",
        "connector.weight",
        "text.layers.1.mlp.down.weight",
        "text.layers.3.attn.k.weight",
        "expert.layers.3.attn.v.weight",
        "time_in.bias",
        "action_out.weight",
    ],
)
def test_one_perturbed_weight(name, run, tmp_path: Path):
    """One element of one tensor, changed by a sixteenth of the tensor's largest value."""
    opened = support.open_checkpoint(support.assemble("base", tmp_path))
    perturb(opened, name)
    with pytest.raises(support.GoldenMismatchError):
        check("base", run(opened, support.observation("base")))


def perturb(opened: Checkpoint, name: str) -> None:
    """Change the element in the middle of a stored tensor, in its file."""
    entry = opened.tensors[name]
    stored = np.memmap(entry.path, np.uint8, "r+", entry.offset, (entry.nbytes,))
    if entry.dtype == "BF16":
        bits = stored.view(np.uint16)
        values = (bits.astype(np.uint32) << 16).view(np.float32)
    else:
        values = stored.view(np.float32)
    middle = values.size // 2
    changed = values[middle] + np.abs(values).max() / 16
    if entry.dtype == "BF16":
        bits[middle] = np.float32(changed).view(np.uint32) >> 16
    else:
        values[middle] = changed
    stored.flush()

"""The CUDA backend against LeRobot's golden tensors, in float32, bfloat16 and integers."""

from __future__ import annotations

import golden_support as support
import native_runner
import numpy as np
import pytest
from bfloat16_gate import compare_stages

import smolvla_edge
from smolvla_edge.compress.quantize import quantize
from smolvla_edge.compress.recipe import RECIPES
from smolvla_edge.source import open_source

pytestmark = pytest.mark.gpu

# Cameras of different sizes do not stack into the array that `trace` takes.
CASES = [case for case in support.MODEL_CASES if case != "no_resize_mixed"]


@pytest.mark.parametrize("case", CASES)
def test_float32(case, checkpoint):
    """Every intermediate, computed operation by operation, and the actions by recorded stages."""
    opened = checkpoint(case)
    engine = native_runner.make_engine(opened, device="cuda")
    observation = support.observation(case)
    for sample in range(observation.batch):
        want = native_runner.computed(
            support.expected(case), opened.model, observation.camera_mask, sample
        )
        assert "out.actions_padded" in want
        support.compare_all(native_runner.trace(engine, opened.model, observation, sample), want)
        actions = native_runner.sample_actions(engine, opened.model, observation, sample)
        support.compare("actions", actions[None], want["out.actions_padded"])


def test_cameras_of_different_sizes(checkpoint):
    """A stage of vision for each size; only `predict` takes such frames."""
    case = "no_resize_mixed"
    opened, observation = checkpoint(case), support.observation(case)
    frames = [np.ascontiguousarray(frame[0].transpose(1, 2, 0)) for frame in observation.frames]
    engine = native_runner.make_engine(opened, device="cuda")
    for _ in range(2):  # recorded, then replayed
        result = engine.predict(
            frames,
            observation.tokens[0][observation.token_mask[0]],
            observation.state[0, : opened.model.state_dim].copy(),
            observation.noise[0],
            plan=native_runner.exact_plan(opened.model),
            state_is_normalized=True,
        )
        support.compare("actions", result["normalized"], support.golden(case)["out.actions"][0])


@pytest.mark.parametrize("case", support.PIPELINE_CASES)
def test_from_frames_to_robot_units(case, folder):
    golden, entry = support.golden(case), support.ALL_CASES[case]
    policy = smolvla_edge.load(folder(case), device="cuda")
    chunk = policy.predict(
        images={name: support.frame(golden, i) for i, name in enumerate(entry["image_keys"])},
        state=golden["in.raw_state"][0],
        task=entry["task"],
        noise=golden["in.noise"][0],
    )
    support.compare("normalized", chunk.normalized, golden["out.actions"][0])
    support.compare("actions", chunk.actions, golden["out.actions_unnormalized"][0])


def test_bfloat16_errs_no_more_than_lerobots(checkpoint):
    """The CPU's gate (tests/golden/test_bfloat16.py): 1.5 times LeRobot's own bfloat16 error."""
    compare_stages("mixed_bf16", checkpoint("mixed_bf16"), device="cuda")


@pytest.mark.full
def test_full_size(full_checkpoint):
    """The 450 M parameters of the real size, 2 cameras, 10 steps."""
    model, observation = full_checkpoint.model, support.observation("full")
    want = native_runner.computed(support.expected("full"), model, observation.camera_mask)
    engine = native_runner.make_engine(full_checkpoint, device="cuda")
    support.compare_all(native_runner.trace(engine, model, observation), want)
    actions = native_runner.sample_actions(engine, model, observation)
    support.compare("actions", actions[None], want["out.actions_padded"])


@pytest.mark.full
def test_full_size_in_bfloat16(full_checkpoint):
    compare_stages("full", full_checkpoint, device="cuda")


@pytest.mark.parametrize("recipe", ["int8", "balanced", "small"])
def test_integer_weights(recipe, tiny, tmp_path):
    """Beside the CPU's float32 arithmetic on the same codes.

    The bound is that of tests/cuda/test_cuda_engine.cpp: twice the error of the CPU's own bfloat16,
    and 1e-2 for rows that come to lie on the other side of a rounding (and, with weights of 4 bits,
    are not rounded to integers at all).
    """
    bundle = quantize(open_source(tiny), tmp_path / recipe, RECIPES[recipe]).path
    source = open_source(bundle)
    observation = tiny_observation(source)
    want = predict(source, observation, compute="float32")
    cpu = relative(predict(source, observation, compute="bfloat16"), want)
    for compute in ("float32", "bfloat16"):
        got = predict(source, observation, compute=compute, device="cuda")
        assert relative(got, want) <= 2 * cpu + 1e-2


def tiny_observation(source) -> dict:
    model, random = source.model, np.random.default_rng(5)
    return {
        "frames": [random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(2)],
        "tokens": random.integers(0, model.vocab, 7),
        "state": random.standard_normal(model.state_dim).astype(np.float32),
        "noise": random.standard_normal((model.chunk_size, model.max_action_dim)).astype(
            np.float32
        ),
        "plan": native_runner.exact_plan(model),
        "state_is_normalized": True,
    }


def predict(source, observation: dict, *, compute: str, device: str = "cpu") -> np.ndarray:
    engine = native_runner.make_engine(source, compute=compute, device=device)
    normalized: np.ndarray = engine.predict(**observation)["normalized"]
    return normalized


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())

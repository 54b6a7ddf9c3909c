"""The C++ core against the golden tensors, each instruction set forced in turn."""

from __future__ import annotations

import platform

import golden_support as support
import native_runner
import numpy as np
import pytest

from smolvla_edge import _core

TABLE = _core.kernel_table()
ISAS = tuple(dict.fromkeys(row["isa"] for row in TABLE))
# Cameras of different sizes do not stack into the array that `trace` takes.
CASES = [case for case in support.MODEL_CASES if case != "no_resize_mixed"]


@pytest.fixture(params=ISAS)
def isa(request):
    """An instruction set that this CPU has."""
    if not any(row["supported"] for row in TABLE if row["isa"] == request.param):
        pytest.skip(f"this CPU has no {request.param}")
    return request.param


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX-512 is of x86")
def test_the_table_has_what_the_gate_is_about():
    assert {"scalar", "avx512"} <= set(ISAS)


@pytest.mark.parametrize("case", CASES)
def test_small(case, isa, checkpoint):
    """Every intermediate that the core computes, and the actions, sample by sample."""
    opened = checkpoint(case)
    engine = native_runner.make_engine(opened, isa)
    assert engine.info()["isa"] == isa
    observation = support.observation(case)
    for sample in range(observation.batch):
        got = native_runner.trace(engine, opened.model, observation, sample)
        want = native_runner.computed(
            support.expected(case), opened.model, observation.camera_mask, sample
        )
        assert "out.actions_padded" in want
        support.compare_all(got, want)


@pytest.mark.full
def test_full(isa, full_checkpoint):
    """The 450 M parameters of the real size, 2 cameras, 10 steps."""
    model = full_checkpoint.model
    engine = native_runner.make_engine(full_checkpoint, isa)
    observation = support.observation("full")
    want = native_runner.computed(support.expected("full"), model, observation.camera_mask)
    support.compare_all(native_runner.trace(engine, model, observation), want)


def test_cameras_of_different_sizes(checkpoint):
    """Without a resize each camera has its own size; only `predict` takes such frames."""
    case = "no_resize_mixed"
    opened, observation = checkpoint(case), support.observation(case)
    frames = [np.ascontiguousarray(frame[0].transpose(1, 2, 0)) for frame in observation.frames]
    result = native_runner.make_engine(opened).predict(
        frames,
        observation.tokens[0][observation.token_mask[0]],
        observation.state[0, : opened.model.state_dim].copy(),
        observation.noise[0],
        native_runner.exact_plan(opened.model),
        state_is_normalized=True,
    )
    support.compare("actions", result["normalized"], support.golden(case)["out.actions"][0])

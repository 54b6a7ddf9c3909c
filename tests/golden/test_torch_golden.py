"""The torch reference against every golden tensor; it skips nothing."""

from __future__ import annotations

import golden_support as support
import pytest
from needs import needs

with needs("torch"):
    import torch_runner

    from smolvla_edge.model import load_model


@pytest.mark.parametrize("case", support.MODEL_CASES)
def test_small(case, checkpoint):
    """All intermediates and the actions, masked rows and dead layers included."""
    opened = checkpoint(case)
    model = load_model(
        opened.model,
        opened.tensors | opened.dead,
        prefix_length=opened.policy.prefix_length,
    )
    observation = support.observation(case)
    support.compare_all(torch_runner.trace(model, observation), support.expected(case))


@pytest.mark.parametrize("case", support.MODEL_CASES)
def test_dead_tensors_are_dead(case, checkpoint):
    """Without them the actions are the same to the last bit."""
    opened = checkpoint(case)
    observation = support.observation(case)
    full = load_model(opened.model, opened.tensors | opened.dead)
    live = load_model(opened.model, opened.tensors)
    assert full.text.dead and not live.text.dead
    name = "out.actions_padded"
    want = torch_runner.trace(full, observation)[name]
    assert (torch_runner.trace(live, observation)[name] == want).all()


def test_mixed_dtypes(checkpoint):
    """A bfloat16 and float32 mix computes what LeRobot computes in it.

    Same operations in the same order, so the bound is one rounding of bfloat16 (2^-9) and not the
    hundreds of roundings that two implementations would accumulate.
    """
    case = "mixed_bf16"
    opened = checkpoint(case)
    model = load_model(opened.model, opened.tensors | opened.dead, dtype=None)
    observation = support.observation(case)
    want = {
        name.removeprefix("native."): value
        for name, value in support.golden(case).items()
        if name.startswith("native.")
    }
    support.compare_all(torch_runner.trace(model, observation), want, tolerance=2**-9)


@pytest.mark.full
def test_full(full_checkpoint):
    """The 450 M parameters of the real size, 2 cameras, 10 steps."""
    model = load_model(full_checkpoint.model, full_checkpoint.tensors)
    observation = support.observation("full")
    got = torch_runner.trace(model, observation)
    support.compare_all(got, support.expected("full"))

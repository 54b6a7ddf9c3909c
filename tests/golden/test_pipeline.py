"""Raw frames, a task and a raw state through the public API to robot units, on both backends."""

from __future__ import annotations

import golden_support as support
import numpy as np
import pytest

import smolvla_edge


@pytest.mark.parametrize("case", support.PIPELINE_CASES)
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_predict(case, backend, folder):
    """The actions are LeRobot's, before and after its postprocessor."""
    if backend == "torch":
        pytest.importorskip("torch")
    golden, entry = support.golden(case), support.ALL_CASES[case]
    path = folder(case)
    policy = smolvla_edge.load(path, backend=backend)
    chunk = policy.predict(
        images={name: support.frame(golden, i) for i, name in enumerate(entry["image_keys"])},
        state=golden["in.raw_state"][0],
        task=entry["task"],
        noise=golden["in.noise"][0],
    )
    assert chunk.actions.dtype == chunk.normalized.dtype == np.float32
    support.compare("normalized", chunk.normalized, golden["out.actions"][0])
    support.compare("actions", chunk.actions, golden["out.actions_unnormalized"][0])

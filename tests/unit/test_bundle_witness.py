"""Bundles kept as they were written: every later release must read them the same.

Each was converted from `make_checkpoint(..., "tiny")` with a smaller VLM, and its actions computed
when it was. Version 1 has no `compute` (it is float32); the bundle of version 2 computes in
bfloat16. Never write them again; a new format gets a witness of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from smolvla_edge.bundle import read_bundle
from smolvla_edge.policy import load

DATA = Path(__file__).parents[1] / "data"
# Of the largest action. What rounds to bfloat16 may round to its neighbour where sums differ in the
# last bit between machines (another C library's tables), so a step of bfloat16 is allowed there.
TOLERANCE = {"bundle_v1": 2e-5, "bundle_v2": 2**-8}


@pytest.fixture(params=TOLERANCE)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_reads_as_it_was_written(name: str) -> None:
    bundle = read_bundle(DATA / name)
    bundle.verify_tensors()
    bundle.verify_files()
    witness = json.loads((DATA / f"{name}_actions.json").read_text())
    assert bundle.digest == witness["digest"]
    assert bundle.compute == {"bundle_v1": "float32", "bundle_v2": "bfloat16"}[name]
    assert bundle.contract.rename == {"observation.images.top": "observation.images.camera1"}
    command = bundle.provenance["command"]
    assert command.startswith(f"smolvla-edge convert checkpoint {name}")


def test_acts_as_it_did(name: str) -> None:
    policy = load(DATA / name)
    frame = (np.arange(40 * 64 * 3) * 7 % 256).astype(np.uint8).reshape(40, 64, 3)
    width = policy.model.max_action_dim
    chunk = policy.predict(
        {"observation.images.top": frame, "observation.images.camera2": frame[::-1]},
        np.linspace(-1, 1, 6, dtype=np.float32),
        "pick up the cube",
        noise=np.linspace(-2, 2, 4 * width, dtype=np.float32).reshape(4, width),
    )
    witness = json.loads((DATA / f"{name}_actions.json").read_text())
    expected = np.asarray(witness["actions"], np.float32)
    allowed = TOLERANCE[name] * np.abs(expected).max()
    np.testing.assert_allclose(chunk.actions, expected, rtol=0, atol=allowed)

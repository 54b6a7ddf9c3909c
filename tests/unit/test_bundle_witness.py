"""A bundle of format version 1, kept as it was written: every later release must read it the same.

It was converted from `make_checkpoint(..., "tiny")` with a smaller VLM, and its actions computed
when it was. Never write it again; a new format gets a witness of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from smolvla_edge.bundle import read_bundle
from smolvla_edge.policy import load

DATA = Path(__file__).parents[1] / "data"
WITNESS = json.loads((DATA / "bundle_v1_actions.json").read_text())


def test_reads_as_it_was_written() -> None:
    bundle = read_bundle(DATA / "bundle_v1")
    bundle.verify_tensors()
    bundle.verify_files()
    assert bundle.digest == WITNESS["digest"]
    assert bundle.contract.rename == {"observation.images.top": "observation.images.camera1"}
    assert bundle.provenance["command"] == "smolvla-edge convert checkpoint bundle_v1"


def test_acts_as_it_did() -> None:
    policy = load(DATA / "bundle_v1")
    frame = (np.arange(40 * 64 * 3) * 7 % 256).astype(np.uint8).reshape(40, 64, 3)
    width = policy.model.max_action_dim
    chunk = policy.predict(
        {"observation.images.top": frame, "observation.images.camera2": frame[::-1]},
        np.linspace(-1, 1, 6, dtype=np.float32),
        "pick up the cube",
        noise=np.linspace(-2, 2, 4 * width, dtype=np.float32).reshape(4, width),
    )
    expected = np.asarray(WITNESS["actions"], np.float32)
    np.testing.assert_allclose(chunk.actions, expected, rtol=0, atol=2e-5 * np.abs(expected).max())

"""LeRobot's own methods, batches after its preprocessor in, on both backends."""

from __future__ import annotations

import ast

import golden_support as support
import numpy as np
import pytest

import smolvla_edge
from smolvla_edge.policy import Policy

CASES = [case for case in support.ALL_CASES if case not in ("visual_mean_std", "select_action")]


@pytest.fixture(params=["native", "torch"])
def backend(request) -> str:
    if request.param == "torch":
        pytest.importorskip("torch")
    return request.param


def load(case: str, folder, backend: str) -> Policy:
    path, options = folder(case), {}
    if not (path / "policy_preprocessor.json").exists():
        tokenizer = support.TINY / "pipeline" / "tokenizer" / "tokenizer.json"
        options = {"allow_unnormalized": True, "tokenizer": tokenizer}
    return smolvla_edge.load(path, backend=backend, allow_missing_cameras=True, **options)


def batch(case: str) -> dict[str, np.ndarray]:
    golden, entry = support.golden(case), support.ALL_CASES[case]
    result = {
        "observation.state": golden["in.state"],
        "observation.language.tokens": golden["in.lang_tokens"],
        "observation.language.attention_mask": golden["in.lang_mask"],
    }
    for i, name in enumerate(entry["image_keys"]):
        if f"in.image.{i}" in golden:
            result[name] = golden[f"in.image.{i}"]
        elif f"in.image_u8.{i}" in golden:
            frame = golden[f"in.image_u8.{i}"].transpose(2, 0, 1)[None]
            result[name] = frame.astype(np.float32) / np.float32(255)
    for i in ast.literal_eval((entry.get("inputs") or {}).get("masked", "()")):
        size = len(golden["in.noise"])
        result[f"{entry['image_keys'][i]}_padding_mask"] = np.zeros(size, bool)
    return result


@pytest.mark.parametrize("case", CASES)
def test_predict_action_chunk(case, backend, folder):
    """Normalised actions, for every sample of the batch."""
    golden, call = support.golden(case), support.ALL_CASES[case]["rtc"] or {}
    guidance = {
        name: call[name] for name in ("inference_delay", "execution_horizon") if name in call
    }
    actions = load(case, folder, backend).predict_action_chunk(
        batch(case),
        noise=golden["in.noise"],
        prev_chunk_left_over=golden.get("in.prev_chunk_left_over"),
        **guidance,
    )
    assert actions.dtype == np.float32
    support.compare("actions", actions, golden["out.actions"])


def test_select_action(backend, folder):
    """Seven calls over a queue of three."""
    case = "select_action"
    policy, golden = load(case, folder, backend), support.golden(case)
    for call in range(7):
        action = policy.select_action(batch(case), noise=golden["in.noise"])
        support.compare(f"call {call}", action, golden[f"out.selected.{call}"])

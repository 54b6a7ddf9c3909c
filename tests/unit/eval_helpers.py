"""What the tests of evaluation share: a simulator if there is one, and policies of its shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolvla_edge.errors import MissingExtraError
from smolvla_edge.eval.metaworld import require_simulator
from smolvla_edge.synthetic import make_checkpoint


def need_simulator() -> None:
    """Skip without the extra sim. Without EGL the tests fail: it is a missing system package."""
    try:
        require_simulator()
    except MissingExtraError as missing:
        pytest.skip(str(missing))


def arm_policy(folder: Path, **overrides) -> Path:
    """An untrained policy for Meta-World's arm: one camera of 64 pixels, chunks of 8 actions."""
    return make_checkpoint(
        folder,
        "tiny",
        cameras=["observation.image"],
        state_dim=4,
        action_dim=4,
        overrides={"pad_language_to": "longest", **overrides},
    )

"""A tiny recording and policy to search plans of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from eval_helpers import arm_policy

from smolvla_edge.bundle_writer import write_bundle
from smolvla_edge.checkpoint import read_checkpoint
from smolvla_edge.dataset import DatasetWriter
from smolvla_edge.dataset.layout import Feature
from smolvla_edge.tune.search import Trial
from smolvla_edge.tune.space import Space

CAMERA = "observation.image"
ROWS = 2  # actions that the policy executes of a chunk


def bundle(folder: Path, **options) -> Path:
    """A bundle for one camera of 64 pixels that executes 2 of the 8 actions of a chunk."""
    checkpoint = arm_policy(folder / "checkpoint", n_action_steps=ROWS)
    return write_bundle(read_checkpoint(checkpoint), folder / "bundle", **options).path


def recording(folder: Path, lengths: tuple[int, ...] = (6, 5, 6, 7)) -> Path:
    """Episodes in which a square moves over a still background, so that a cache keeps something."""
    features = {
        CAMERA: Feature("image", (64, 64, 3)),
        "observation.state": Feature("float32", (4,)),
        "action": Feature("float32", (4,)),
    }
    random = np.random.default_rng(0)
    with DatasetWriter(folder, 10, features) as writer:
        for length in lengths:
            images = np.tile(random.integers(0, 256, (64, 64, 3), np.uint8), (length, 1, 1, 1))
            for number, image in enumerate(images):
                image[:8, number : number + 8] = 255
            writer.add(
                {
                    CAMERA: images,
                    "observation.state": random.standard_normal((length, 4)),
                    "action": random.standard_normal((length, 4)),
                },
                "push it",
            )
    return folder


def space(**changes) -> Space:
    """All knobs of a policy of 10 steps; of each part 4 layers, of which 2 may be left out."""
    fields = {
        "horizon": ROWS,
        "knobs": ("steps", "solver", "stop", "cache", "skip.vision", "skip.vlm", "skip.expert"),
        "steps": (1, 10),
        "order": (("vision", (3, 1)), ("vlm", (2, 0)), ("expert", (0, 3))),
    }
    return Space(**{**fields, **changes})


def trial(number: int, error: float, work: float) -> Trial:
    return Trial(number, space().plan({"steps": 1 + number}), error, work)

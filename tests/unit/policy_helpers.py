"""A tiny policy, its observation, and an engine that returns what it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from smolvla_edge.backends import PredictResult
from smolvla_edge.cache_report import CacheReport
from smolvla_edge.plan import Plan
from smolvla_edge.policy import Policy
from smolvla_edge.source import open_source
from smolvla_edge.synthetic import make_checkpoint

CAM1, CAM2 = "observation.images.camera1", "observation.images.camera2"
RANDOM = np.random.default_rng(0)
FRAME1 = RANDOM.integers(0, 256, (48, 64, 3), dtype=np.uint8)
FRAME2 = RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)
IMAGES = {CAM1: FRAME1, CAM2: FRAME2}
STATE = np.linspace(-1, 1, 6, dtype=np.float32)
TASK = "pick up the cube"


def tiny_checkpoint(folder: Path) -> Path:
    """A checkpoint of 0.4 M parameters whose `step` uses 3 of the 8 actions of a chunk."""
    return make_checkpoint(folder, "tiny", overrides={"n_action_steps": 3})


def changed(folder: Path, tmp_path: Path, **config: Any) -> Path:
    """The same checkpoint under another config.json."""
    copy = tmp_path / "changed"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "config.json").unlink()
    data = json.loads((folder / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**data, **config}))
    return copy


class FakeEngine:
    """Returns what it is told, and remembers what it was given."""

    name = "fake"

    def __init__(self, rows: int = 8, width: int = 6, value: float = 0.5) -> None:
        self.result = np.full((rows, width), value, np.float32)
        self.calls: list[dict[str, Any]] = []
        self.resets = 0

    def info(self) -> dict[str, Any]:
        fields = ["steps", "horizon", "skip", "cache", "warm_start"]
        return {"backend": self.name, "device": "cpu", "plan_fields": fields}

    def predict(
        self,
        frames: Any,
        tokens: Any,
        state: Any,
        noise: Any,
        plan: Plan,
        rtc: Any = None,
        **more: Any,
    ) -> PredictResult:
        given = {"frames": frames, "tokens": tokens, "state": state, "noise": noise, "rtc": rtc}
        self.calls.append({**given, **more})
        timings = dict.fromkeys(("preprocess", "vision", "prefix", "flow", "total"), 0.0)
        numbered = self.result + np.float32(len(self.calls))
        report = CacheReport(False, None, 0.0, len(self.calls), None)
        cached = tuple(None if plan.cache is None or f is None else report for f in frames)
        return PredictResult(numbered, numbered * 2, timings, plan.steps, cached)

    def reset(self) -> None:
        self.resets += 1


def with_engine(folder: Path, engine: Any, plan: Plan | None = None, **options: Any) -> Policy:
    source = open_source(folder)
    return Policy(source, engine, plan or Plan.exact(source.model.num_steps), **options)


def batch(size: int = 1) -> dict[str, Any]:
    """What LeRobot's preprocessor makes of the observation, `size` times."""
    images = {name: frame.astype(np.float32) / 255 for name, frame in IMAGES.items()}
    tokens = np.array([[5, 9, 31, 7, 2, 2]] * size, np.int64)
    mask = np.array([[True, True, True, True, False, False]] * size)
    return {
        **{name: np.stack([image.transpose(2, 0, 1)] * size) for name, image in images.items()},
        "observation.state": np.stack([STATE] * size),
        "observation.language.tokens": tokens,
        "observation.language.attention_mask": mask,
        "task": [TASK] * size,
        f"{CAM1}_is_pad": np.zeros(size, bool),
    }

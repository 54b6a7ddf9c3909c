"""The gate of bfloat16 arithmetic, on any device: LeRobot's own bfloat16 run of the same weights.

The golden files hold both of LeRobot's runs: `out.*` with the weights upcast to float32, `native.*`
mixed as the checkpoint ships. Their difference is what a user of LeRobot lives with. Ours keeps
more in float32 and may err at most 1.5 times as much, by the largest and by the mean error of every
stage.
"""

from __future__ import annotations

import re

import golden_support as support
import native_runner
import numpy as np

ALLOWED = 1.5
STAGES = {
    "vision": r"out\.vision\.\d+",
    "connector": r"out\.connector\.\d+",
    "keys and values": r"out\.kv\..*",
    "velocity": r"out\.v_t\..*",
    "actions": r"out\.x_t\..*|out\.actions",
}


def lerobots_bfloat16(golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix("native."): value
        for name, value in golden.items()
        if name.startswith("native.")
    }


def errors(got, want, pattern: str) -> tuple[float, float]:
    """Largest and mean absolute error over the tensors of a stage; (0, 0) where there are none."""
    gaps = [
        np.abs(got[name] - want[name]).ravel()
        for name in want
        if name in got and re.fullmatch(pattern, name) and want[name].dtype == np.float32
    ]
    gap = np.concatenate(gaps) if gaps else np.zeros(1)
    return float(gap.max()), float(gap.mean())


def compare_stages(case: str, opened, isa: str = "", device: str = "cpu") -> None:
    """Raises AssertionError for a stage that errs more than it may."""
    observation = support.observation(case)
    golden = support.golden(case)
    mask = observation.camera_mask
    exact = native_runner.computed(
        {name: value for name, value in golden.items() if not name.startswith("native.")},
        opened.model,
        mask,
    )
    theirs = native_runner.computed(lerobots_bfloat16(golden), opened.model, mask)
    engine = native_runner.make_engine(opened, isa, compute="bfloat16", device=device)
    ours = native_runner.trace(engine, opened.model, observation)
    compared = 0
    for stage, pattern in STAGES.items():
        allowed = errors(theirs, {n: exact[n] for n in theirs if n in exact}, pattern)
        got = errors(ours, {n: exact[n] for n in theirs if n in exact}, pattern)
        if allowed == (0.0, 0.0):
            continue  # not recorded for this case
        compared += 1
        for kind, mine, limit in zip(("largest", "mean"), got, allowed, strict=True):
            assert 0 < mine <= ALLOWED * limit, f"{stage}: {kind} error {mine}, LeRobot's {limit}"
    assert compared >= 3

"""Golden cases: reading them, building their checkpoints, comparing with them.

tests/data/golden/README.md says what the files hold. `compare` is the gate of the whole project.
"""

from __future__ import annotations

import ast
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from smolvla_edge.checkpoint import Checkpoint, read_checkpoint
from smolvla_edge.counter_values import counter_values, weight_chunks
from smolvla_edge.rtc import Guidance
from smolvla_edge.safetensors_file import (
    SafetensorsFile,
    SafetensorsWriter,
    TensorLayout,
    as_float32,
)

DATA = Path(__file__).parents[1] / "data"
TINY = DATA / "golden" / "tiny"
FULL = DATA / "golden" / "full"
EXTRA = DATA / "golden_extra"
CASES: dict[str, dict[str, Any]] = json.loads((TINY / "index.json").read_text())["variants"]
EXTRA_CASES: dict[str, dict[str, Any]] = json.loads((EXTRA / "index.json").read_text())["variants"]
ALL_CASES = CASES | EXTRA_CASES
# What the model alone can be held to: Aloha's joints are converted outside of it (see
# test_pipeline.py), and a checkpoint that normalises images is refused by its contract.
MODEL_CASES = [case for case in ALL_CASES if case not in ("aloha", "visual_mean_std")]
PIPELINE_CASES = [
    case for case, entry in ALL_CASES.items() if "task" in entry and case != "visual_mean_std"
]

TOLERANCE = 2e-5  # of the largest magnitude in the golden tensor


class GoldenMismatchError(AssertionError):
    """A tensor is not the golden one."""


def compare(name: str, got: np.ndarray, want: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """Largest error relative to the largest magnitude of `want`; raises beyond `tolerance`.

    Integers and booleans must be equal. A shape, NaN or infinity that differs is a mismatch.
    """
    if got.shape != want.shape:
        raise GoldenMismatchError(f"{name}: expected shape {want.shape}, got {got.shape}")
    if want.dtype.kind in "bi":
        wrong = int((got != want).sum())
        if wrong:
            raise GoldenMismatchError(f"{name}: {wrong} of {want.size} values differ")
        return 0.0
    if not np.isfinite(got).all():
        raise GoldenMismatchError(f"{name}: {int((~np.isfinite(got)).sum())} non-finite values")
    error = np.abs(got.astype(np.float64) - want.astype(np.float64))
    relative = float(error.max() / np.abs(want).max())
    if relative > tolerance:
        where = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
        raise GoldenMismatchError(
            f"{name}: error {relative:.2e} of the largest magnitude (allowed {tolerance:.0e}); "
            f"worst at {where}: expected {want[where]:.7g}, got {got[where]:.7g}"
        )
    return relative


def compare_all(
    got: Mapping[str, np.ndarray],
    want: Mapping[str, np.ndarray],
    tolerance: float = TOLERANCE,
) -> float:
    """Compare every tensor of `want`; raises naming all that are missing or differ."""
    faults, worst = [], 0.0
    for name, value in want.items():
        try:
            if name not in got:
                raise GoldenMismatchError(f"{name}: not computed")
            worst = max(worst, compare(name, got[name], value, tolerance))
        except GoldenMismatchError as fault:
            faults.append(str(fault))
    if faults:
        raise GoldenMismatchError(f"{len(faults)} of {len(want)} tensors:\n" + "\n".join(faults))
    return worst


@lru_cache(maxsize=4)
def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a golden file, bfloat16 widened to float32."""
    file = SafetensorsFile(path)
    result = {}
    for name, entry in file.entries.items():
        values = file.read(name)
        result[name] = as_float32(values, entry.dtype) if entry.dtype == "BF16" else values
    return result


def case_folder(case: str) -> Path:
    """Where a case is recorded; "full" is the full-size one."""
    if case == "full":
        return FULL
    return (EXTRA if case in EXTRA_CASES else TINY) / case


def golden(case: str) -> dict[str, np.ndarray]:
    """Every tensor of a case."""
    return read_tensors(case_folder(case) / "golden.safetensors")


def read_config(case: str) -> dict[str, Any]:
    """config.json of a case."""
    return json.loads((case_folder(case) / "config.json").read_text())


def expected(case: str) -> dict[str, np.ndarray]:
    """The outputs and intermediates of the float32 model, without robot units and queue."""
    return {
        name: value
        for name, value in golden(case).items()
        if name.startswith(("mid.", "out."))
        and not name.startswith(("out.actions_unnormalized", "out.selected."))
    }


def assemble(case: str, folder: Path) -> Path:
    """A checkpoint folder of a small case, as a user would have it. -> folder"""
    folder.mkdir(parents=True, exist_ok=True)
    for source in case_folder(case).iterdir():
        if source.name == "golden.safetensors":
            continue
        if source.is_dir():
            shutil.copytree(source, folder / source.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, folder / source.name)
    entry, weights = ALL_CASES[case], folder / "model.safetensors"
    (folder / "vlm_config.json").write_text(json.dumps(entry["vlm"]))
    if case in CASES:
        shutil.copyfile(TINY / entry["weights"], weights)
    else:
        write_generated(json.loads((EXTRA / entry["weights"]).read_text()), weights)
    return folder


def write_generated(manifest: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A checkpoint of generated values, from {LeRobot name: {"shape", "dtype"}}."""
    layouts = [
        TensorLayout(name, item["dtype"], tuple(item["shape"])) for name, item in manifest.items()
    ]
    with SafetensorsWriter(path, layouts, {"format": "pt"}) as writer:
        for item in writer.order:
            chunks = weight_chunks(item.name, item.shape, item.dtype)
            writer.write(item.name, (chunk.tobytes() for chunk in chunks))


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read an assembled folder; cases without statistics or tokenizer are of the model alone."""
    if (folder / "policy_preprocessor.json").exists():
        return read_checkpoint(folder)
    tokenizer = TINY / "pipeline" / "tokenizer" / "tokenizer.json"
    return read_checkpoint(folder, tokenizer=tokenizer, allow_unnormalized=True)


@dataclass
class Observation:
    """What the model is given in a case, B observations at once.

    frames: per camera [B, 3, h, w] float32 in [0,1] before the letterbox, None for a blank one;
    camera_mask [B, cameras]; tokens, token_mask [B, L]; state [B, max_state_dim] normalised;
    noise [B, chunk, max_action_dim]; guidance of the rtc cases.
    """

    frames: list[np.ndarray | None]
    camera_mask: np.ndarray
    tokens: np.ndarray
    token_mask: np.ndarray
    state: np.ndarray
    noise: np.ndarray
    guidance: Guidance | None = None

    @property
    def batch(self) -> int:
        return self.noise.shape[0]


def observation(case: str) -> Observation:
    """The inputs of a case."""
    config, tensors = read_config(case), golden(case)
    if case == "full":
        frames = full_images()
        mask = [True] * len(frames)
        return Observation(frames, np.array([mask]), **_rest(tensors, config))
    entry = ALL_CASES[case]
    keys = entry["image_keys"]
    given = {i: _frame(tensors, i) for i in range(len(keys))}
    present = [i for i, frame in given.items() if frame is not None]
    masked = ast.literal_eval(entry.get("inputs", {}).get("masked", "()"))
    # Absent cameras become blank ones at the end, as many as the policy allows.
    blanks = min(config["empty_cameras"], len(keys) - len(present))
    mask = [i not in masked for i in present] + [False] * blanks
    return Observation(
        [given[i] for i in present] + [None] * blanks,
        np.array([mask] * tensors["in.noise"].shape[0]),
        guidance=_guidance(entry["rtc"], config["rtc_config"], tensors),
        **_rest(tensors, config),
    )


def full_images() -> list[np.ndarray]:
    """The two frames of the full-size case, [1, 3, h, w] float32 in [0,1]."""
    shapes = [(1, 3, 480, 640), (1, 3, 512, 512)]
    return [
        counter_values(f"in.image.{i}", 1, 0.5, 0.5, math.prod(shape)).clip(0, 1).reshape(shape)
        for i, shape in enumerate(shapes)
    ]


def _frame(tensors: Mapping[str, np.ndarray], index: int) -> np.ndarray | None:
    """[B, 3, h, w] in [0,1] of one camera, the last of several observations; None if absent."""
    if f"in.image.{index}" in tensors:
        frame = tensors[f"in.image.{index}"]
        return frame[:, -1] if frame.ndim == 5 else frame
    if f"in.image_u8.{index}" in tensors:
        byte_frame = tensors[f"in.image_u8.{index}"].transpose(2, 0, 1)[None]
        return byte_frame.astype(np.float32) / np.float32(255)
    return None


def _rest(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    state = tensors["in.state"]
    state = state[:, -1] if state.ndim == 3 else state
    return {
        "tokens": tensors["in.lang_tokens"],
        "token_mask": tensors["in.lang_mask"],
        "state": np.pad(state, ((0, 0), (0, config["max_state_dim"] - state.shape[1]))),
        "noise": tensors["in.noise"],
    }


def _guidance(
    call: Mapping[str, Any] | None, settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> Guidance | None:
    if call is None or "in.prev_chunk_left_over" not in tensors:
        return None
    return Guidance(
        prev=tensors["in.prev_chunk_left_over"][0],
        inference_delay=call["inference_delay"],
        execution_horizon=call["execution_horizon"] or settings["execution_horizon"],
        schedule=settings["prefix_attention_schedule"],
        max_guidance_weight=settings["max_guidance_weight"],
    )


def frame(tensors: Mapping[str, np.ndarray], index: int) -> np.ndarray:
    """A camera's frame as a robot gives it: HWC, bytes where the case has them."""
    if f"in.image_u8.{index}" in tensors:
        return tensors[f"in.image_u8.{index}"]
    return np.ascontiguousarray(tensors[f"in.image.{index}"][0].transpose(1, 2, 0))

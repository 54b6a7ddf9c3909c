"""An export for TensorRT, held to the policy as far as a machine without TensorRT can.

Operators and types are looked up (tensorrt_operators.py), ONNX's own checker and shape inference
have to pass, and ONNX Runtime computes the graphs on the CPU, not optimised, so that float16 is
rounded where the graph says so. The reference is the torch model in float32 with the same weights.
What TensorRT makes of the graphs, in time and in numbers, is not known from this.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from smolvla_edge.backends.torch import TorchBackend
from smolvla_edge.errors import MissingExtraError, VerificationError
from smolvla_edge.export.tensorrt_card import card
from smolvla_edge.export.tensorrt_operators import check_operators
from smolvla_edge.onnx_folder import ExportFolder, read_export
from smolvla_edge.source import Source

try:
    import onnxruntime
except ImportError as error:
    raise MissingExtraError(
        "verifying an export needs ONNX Runtime, and it is not installed; run: "
        "pip install 'smolvla-edge[export]'"
    ) from error

FLOAT32_BOUND = 1e-4
"""Largest error over largest magnitude, as of every float32 export."""
FLOAT16_FLOOR_DB = 30.0
"""Signal over noise of every stage. A rounding to float16 is 2^-11 / sqrt(12) of the value, -77 dB;
the 3,000 or so one behind the other in towers and ten steps add up to -42 dB where each is neither
damped nor amplified, and 12 dB are left for those that are."""


@dataclass(frozen=True)
class Observed:
    """What one made-up observation gives the graphs."""

    pixels: np.ndarray
    camera_mask: np.ndarray
    tokens: np.ndarray
    state: np.ndarray
    noise: np.ndarray


def check_tensorrt(
    path: Path, source: Source, observations: int = 2, seed: int = 0, threads: int | None = None
) -> dict[str, str]:
    """The folder `path`, just exported from `source` -> VERIFICATION.json and CARD.md.

    Raises VerificationError for a stage beyond its bound, or not finite, and ExportError for an
    operator that TensorRT does not document.
    """
    folder = read_export(path)
    _check_graphs(folder)
    sessions = {name: _session(folder.graph_file(name), threads) for name in folder.manifest.graphs}
    reference = _reference(source, threads)
    exact = folder.manifest.precision == "float32"
    bounds = {
        "bound": FLOAT32_BOUND if exact else None,
        "floor_db": None if exact else FLOAT16_FLOOR_DB,
    }
    worst: dict[str, dict[str, Any]] = {}
    for seen in _observations(folder, observations, seed):
        for stage, (got, want) in _stages(folder, sessions, reference, seen).items():
            error = _compared(stage, got, want, exact)
            known = worst.setdefault(stage, {"stage": stage, **error, **bounds})
            known["relative"] = max(known["relative"], error["relative"])
            known["sqnr_db"] = min(known["sqnr_db"], error["sqnr_db"])
    manifest = folder.manifest
    report: dict[str, Any] = {
        "format": "smolvla-edge export verification",
        "version": 1,
        "passed": True,  # or there would be no report
        "target": manifest.target,
        "precision": manifest.precision,
        "dequantised": manifest.provenance.get("dequantised", {}),
        "observations": {"count": observations, "seed": seed, "kind": "made up"},
        "reference": "torch, float32, the same weights",
        "runtime": f"ONNX Runtime {onnxruntime.__version__}, CPU, not optimised",
        "stages": list(worst.values()),
        "onnx": onnx.__version__,
        "not_run": ["TensorRT", "a GPU", "a Jetson"],
    }
    return {
        "VERIFICATION.json": json.dumps(report, indent=1) + "\n",
        "CARD.md": card(manifest, report),
    }


def _check_graphs(folder: ExportFolder) -> None:
    for name in folder.manifest.graphs:
        path = folder.graph_file(name)
        onnx.checker.check_model(str(path), full_check=True)
        check_operators(onnx.load(path, load_external_data=False), str(path))


def _session(path: Path, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads or 0
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _reference(source: Source, threads: int | None) -> TorchBackend:
    """The torch model with what codes stand for; nothing that they meet is rounded."""
    backend = TorchBackend(source.model, source.tensors, source.contract, threads=threads)
    for module in backend.model.modules():
        if hasattr(module, "rounds_rows"):
            module.rounds_rows = False
    return backend


def _observations(folder: ExportFolder, count: int, seed: int) -> Iterator[Observed]:
    """Every camera and a prompt of any length; of two cameras or more, one is masked at times."""
    manifest = folder.manifest
    model = manifest.model
    random = np.random.default_rng(seed)
    cameras = len(manifest.contract.cameras)
    height, width = manifest.graphs["vision"].input("pixels").shape[2:]
    lengths = (model.tokenizer_max_length // 2 or 1, model.tokenizer_max_length, 1)
    rows = manifest.plan.rows(model.chunk_size)
    for k in range(count):
        mask = np.ones(cameras, bool)
        mask[-1] = cameras == 1 or k % 2 == 0
        yield Observed(
            random.uniform(-1, 1, (cameras, 3, int(height), int(width))).astype(np.float32),
            mask,
            random.integers(0, model.vocab, lengths[k % len(lengths)]),
            random.standard_normal(model.max_state_dim).astype(np.float32),
            random.standard_normal((rows, model.max_action_dim)).astype(np.float32),
        )


def _stages(
    folder: ExportFolder,
    sessions: Mapping[str, onnxruntime.InferenceSession],
    reference: TorchBackend,
    seen: Observed,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Stage -> what the graphs made, each of what the one before made, and what is right."""
    (images,) = sessions["vision"].run(None, {"pixels": seen.pixels})
    _check_finite(folder, "image_tokens", images)
    every = np.ones(len(seen.tokens), bool)
    keys, values, valid = sessions["prefix"].run(
        None,
        {
            "image_tokens": images,
            "camera_mask": seen.camera_mask,
            "tokens": seen.tokens,
            "token_mask": every,
            "state": seen.state,
        },
    )
    _check_finite(folder, "keys", keys)
    _check_finite(folder, "values", values)
    inputs = {"noise": seen.noise, "keys": keys, "values": values, "valid": valid}
    inputs["pull_target"] = np.zeros_like(seen.noise)
    inputs["pull_weights"] = np.zeros(len(seen.noise), np.float32)
    (actions,) = sessions["flow"].run(None, inputs)
    _check_finite(folder, "actions", actions)
    prompt = (seen.pixels, seen.camera_mask, seen.tokens, every, seen.state)
    right = reference.trace(*prompt, seen.noise, folder.manifest.plan)
    there = np.flatnonzero(seen.camera_mask)
    tokens = [right[f"out.connector.{i}"][0] for i in there]
    return {
        "image_tokens": (images[there], np.stack(tokens)),
        "actions": (actions, right["out.actions_padded"][0]),
    }


def _check_finite(folder: ExportFolder, stage: str, made: np.ndarray) -> None:
    wrong = int((~np.isfinite(made)).sum())
    if wrong:
        raise VerificationError(
            f"{stage}: expected finite numbers, got {wrong} of {made.size} that are not: what this "
            f"policy computes outgrows {folder.manifest.precision}. Export with --precision float32"
        )


def _compared(stage: str, got: np.ndarray, want: np.ndarray, exact: bool) -> dict[str, float]:
    """exact: held to the bound of float32, otherwise to the floor of float16."""
    error = got.astype(np.float64) - want
    relative = float(np.abs(error).max() / np.abs(want).max())
    noise = float((error**2).sum())
    sqnr = 10 * float(np.log10((want.astype(np.float64) ** 2).sum() / noise)) if noise else 200.0
    if relative > FLOAT32_BOUND if exact else sqnr < FLOAT16_FLOOR_DB:
        bound = f"at most {FLOAT32_BOUND:g}" if exact else f"at least {FLOAT16_FLOOR_DB:g} dB"
        raise VerificationError(
            f"{stage}: expected {bound} of error against torch in float32, got {relative:.2e} of "
            f"the range, {sqnr:.1f} dB. Export with --precision float32"
        )
    return {"relative": relative, "sqnr_db": sqnr}

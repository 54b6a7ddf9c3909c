"""What the made-up graphs of onnx_helpers.py are to give, computed without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx_helpers import FACTOR, PULL, RATE, prefix_weights, vision_weights

from smolvla_edge.config import ModelConfig
from smolvla_edge.model.solver import solve
from smolvla_edge.plan import Plan
from smolvla_edge.rtc import Guidance

TOLERANCE = 1e-5  # a few float32 operations, of numbers near 1


def observation(engine: Any, cameras: int = 2) -> dict[str, Any]:
    """Arguments of `sample_actions` but noise."""
    rng, model = np.random.default_rng(1), engine.config
    width, height = model.resize or (model.image_size,) * 2
    pixels = rng.uniform(0, 1, (cameras, 3, height, width)).astype(np.float32)
    return {
        "pixels": pixels * np.linspace(-1, 1, cameras, dtype=np.float32)[:, None, None, None],
        "camera_mask": np.ones(cameras, bool),
        "tokens": rng.integers(0, model.vocab, 5),
        "token_mask": np.ones(5, bool),
        "state": rng.standard_normal(model.max_state_dim).astype(np.float32),
    }


def noise_of(engine: Any) -> np.ndarray:
    rng = np.random.default_rng(2)
    shape = engine.config.chunk_size, engine.config.max_action_dim
    return rng.standard_normal(shape).astype(np.float32)


def expected(
    engine: Any,
    given: dict[str, Any],
    plan: Plan | None = None,
    guidance: Guidance | None = None,
) -> np.ndarray:
    """What the made-up graphs are to give, all of it computed here."""
    model, plan = engine.config, plan or Plan.exact(engine.config.num_steps)
    mask = given["camera_mask"]
    images = given["pixels"].mean((1, 2, 3))[:, None, None] * vision_weights(model)
    images[~mask] = 0
    tokens = given["tokens"][given["token_mask"]]
    keys, valid = keys_of(model, images, mask, tokens, given["state"])
    start = noise_of(engine)[: plan.rows(model.chunk_size)]
    return integrated(keys, valid, start, plan, model.chunk_size, guidance)


def close(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape and got.dtype == np.float32
    assert np.abs(got - want).max() <= TOLERANCE * max(1.0, float(np.abs(want).max()))


def keys_of(
    model: ModelConfig,
    images: np.ndarray,
    mask: np.ndarray,
    tokens: np.ndarray,
    state: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(keys, valid) as the graph has them."""
    rows = [images.mean(2).reshape(-1), tokens.astype(np.float32) + 1, state.sum(keepdims=True)]
    valid = [np.repeat(mask, images.shape[1]), np.ones(len(tokens) + 1, bool)]
    return np.concatenate(rows)[None, :, None] * prefix_weights(model), np.concatenate(valid)


def integrated(
    keys: np.ndarray,
    valid: np.ndarray,
    noise: np.ndarray,
    plan: Plan,
    chunk: int,
    guidance: Guidance | None = None,
) -> np.ndarray:
    """What model/solver.py, the reference, makes of the made-up velocity."""
    read = float((keys * valid[None, :, None]).sum() * PULL)

    def velocity(x: Any, time: Any, step: int) -> Any:
        return x * float(FACTOR) + float(RATE) * time[:, None, None] + read

    start = torch.from_numpy(noise.copy())[None]
    actions, _ = solve(velocity, start, plan, chunk, noise.shape[1], guidance)
    result: np.ndarray = actions[0].numpy()
    return result

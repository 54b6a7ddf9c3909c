"""The observations that every engine is given: fixed by a seed, stored once, read by all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PAD_ID = 2  # <|im_end|>, SmolVLM2's padding token
FRAME_SIZES = {"512x512": (512, 512), "640x480": (480, 640)}  # name -> (height, width)


def frame(random: np.random.Generator, height: int, width: int, camera: int) -> np.ndarray:
    """uint8 [height, width, 3]: smooth colour fields with noise on top, never constant."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [
        np.sin(rows / (37.0 + 11 * c) + camera) * np.cos(columns / (53.0 - 7 * c) + c)
        for c in range(3)
    ]
    field = 127.5 + 90 * np.stack(waves, axis=-1)
    grain = random.integers(-30, 31, size=field.shape)
    return np.clip(field + grain, 0, 255).astype(np.uint8)


def write_inputs(
    path: Path,
    model: Any,
    cameras: int,
    frame_size: str,
    slots: int,
    valid_tokens: int,
    seed: int = 20,
) -> None:
    """An .npz with frame{i} uint8 [H,W,3], state, tokens, valid_tokens, noise.

    State and noise are what the model sees: normalised, standard normal. Another seed gives another
    observation, its fields of colour moved.
    """
    random = np.random.default_rng(seed)
    height, width = FRAME_SIZES[frame_size]
    arrays: dict[str, np.ndarray] = {}
    for camera in range(cameras):
        arrays[f"frame{camera}"] = frame(random, height, width, camera + 5 * (seed - 20))
    tokens = np.full(slots, PAD_ID, dtype=np.int64)
    tokens[:valid_tokens] = random.integers(3, model.vocab, size=valid_tokens)
    arrays["tokens"] = tokens
    arrays["valid_tokens"] = np.array(valid_tokens)
    arrays["state"] = random.standard_normal(model.state_dim).astype(np.float32)
    noise = random.standard_normal((model.chunk_size, model.max_action_dim))
    arrays["noise"] = noise.astype(np.float32)
    np.savez(path, **arrays)

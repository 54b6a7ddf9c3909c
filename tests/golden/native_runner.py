"""Runs the C++ core on a golden case, and says which golden values it computes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from golden_support import Observation

from smolvla_edge import _core
from smolvla_edge.backends.native import engine_plan
from smolvla_edge.checkpoint import Checkpoint
from smolvla_edge.config import ModelConfig
from smolvla_edge.plan import Plan

Trace = dict[str, np.ndarray]

_OF_CAMERA = re.compile(r"(?:mid\.pixels|mid\.vision_\w+|out\.vision|out\.connector)\.(\d+)")
_OF_TEXT_LAYER = re.compile(r"mid\.prefix_layer(\d+)")
_OF_KEY_VALUE = re.compile(r"out\.kv\.(\d+)\.\w+")


def make_engine(
    checkpoint: Checkpoint,
    isa: str = "",
    config: ModelConfig | None = None,
    compute: str = "float32",
    device: str = "cpu",
) -> _core.Engine:
    """The core on this checkpoint, with `config` in place of the checkpoint's own."""
    tensors = [
        (name, entry.dtype, tuple(entry.shape), str(entry.path), entry.offset, entry.nbytes)
        for name, entry in checkpoint.tensors.items()
    ]
    stats = checkpoint.contract.engine_stats()
    return _core.Engine(
        (config or checkpoint.model).to_dict(),
        tensors,
        stats,
        isa=isa,
        compute=compute,
        device=device,
    )


def pixels_of(
    observation: Observation, size: tuple[int, int] | None, sample: int = 0
) -> np.ndarray:
    """Model pixels [cams, 3, h, w] of one sample by the core's letterbox; blank cameras black."""
    pixels: list[np.ndarray] = []
    for frame in observation.frames:
        if frame is None:
            pixels.append(np.full_like(pixels[-1], -1.0))
            continue
        image = np.ascontiguousarray(frame[sample].transpose(1, 2, 0))
        height, width = image.shape[:2]
        pixels.append(_core.letterbox(image, *(size or (width, height))))
    return np.stack(pixels)


def exact_plan(config: ModelConfig) -> dict[str, Any]:
    return engine_plan(Plan.exact(config.num_steps), config.chunk_size)


def _arguments(
    config: ModelConfig, observation: Observation, sample: int, pixels: np.ndarray | None
) -> dict[str, Any]:
    return {
        "pixels": pixels_of(observation, config.resize, sample) if pixels is None else pixels,
        "camera_mask": observation.camera_mask[sample],
        "tokens": observation.tokens[sample],
        "token_mask": observation.token_mask[sample],
        "state": observation.state[sample],
        "noise": observation.noise[sample],
        "plan": exact_plan(config),
        "rtc": observation.guidance.to_engine() if observation.guidance else None,
    }


def trace(
    engine: _core.Engine,
    config: ModelConfig,
    observation: Observation,
    sample: int = 0,
    pixels: np.ndarray | None = None,
) -> Trace:
    """What the core computes of one sample, under the golden names."""
    result: Trace = engine.trace(**_arguments(config, observation, sample, pixels))
    return result


def sample_actions(
    engine: _core.Engine, config: ModelConfig, observation: Observation, sample: int = 0
) -> np.ndarray:
    """Actions [chunk, max_action_dim] of one sample, without looking at anything before them."""
    actions: np.ndarray = engine.sample_actions(**_arguments(config, observation, sample, None))
    return actions


def computed(
    expected: Mapping[str, np.ndarray],
    config: ModelConfig,
    camera_mask: np.ndarray,
    sample: int = 0,
) -> Trace:
    """Of a case's golden tensors the part that the core computes, for one sample.

    It drops masked tokens and cameras and what never reaches an action. Masks and position ids are
    then all true and 0, 1, 2, ..., and nothing is recorded of them.
    """
    valid = expected["out.prefix_pad_masks"][sample]
    last = config.last_used_text_layer
    result = {}
    for name, value in expected.items():
        if value.dtype != np.float32 or name == "mid.prefix_out_normed_unused":
            continue
        value = value[sample : sample + 1]
        if camera := _OF_CAMERA.fullmatch(name):
            if not camera_mask[sample, int(camera[1])]:
                continue
        elif layer := _OF_TEXT_LAYER.fullmatch(name):
            if int(layer[1]) >= last:
                continue
            value = value[:, valid]
        elif layer := _OF_KEY_VALUE.fullmatch(name):
            if int(layer[1]) > last:
                continue
            value = value[:, :, valid]
        elif name == "out.prefix_embs":
            value = value[:, valid]
        result[name] = value
    return result

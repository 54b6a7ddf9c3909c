"""Runs an ONNX export on a golden case, and says which golden values leave its graphs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import native_runner
import numpy as np
from golden_support import Observation

from smolvla_edge.backends.onnx import OnnxBackend
from smolvla_edge.backends.onnx_session import OnnxOptions
from smolvla_edge.config import ModelConfig
from smolvla_edge.onnx_folder import read_export
from smolvla_edge.plan import Plan

Trace = dict[str, np.ndarray]

_OF_CAMERA = re.compile(r"(?:mid\.pixels|out\.connector)\.\d+")
_OF_KEY_VALUE = re.compile(r"out\.kv\.(\d+)\.\w+")
_OUT = ("out.actions_padded", "out.actions")


def open_export(folder: Path, custom_ops: bool | None = None) -> OnnxBackend:
    """The export, on one thread of the CPU."""
    return OnnxBackend(read_export(folder), threads=1, options=OnnxOptions(custom_ops=custom_ops))


def trace(
    engine: OnnxBackend,
    observation: Observation,
    sample: int = 0,
    pixels: np.ndarray | None = None,
    plan: Plan | None = None,
) -> Trace:
    """What the graphs compute of one sample, under the golden names."""
    guidance = observation.guidance
    if pixels is None:
        pixels = native_runner.pixels_of(observation, engine.config.resize, sample)
    return engine.trace(
        pixels,
        observation.camera_mask[sample],
        observation.tokens[sample],
        observation.token_mask[sample],
        observation.state[sample],
        observation.noise[sample],
        plan,
        inference_delay=0 if guidance is None else guidance.inference_delay,
        prev_chunk_left_over=None if guidance is None else guidance.prev,
        execution_horizon=None if guidance is None else guidance.execution_horizon,
    )


def computed(
    expected: Mapping[str, np.ndarray],
    config: ModelConfig,
    camera_mask: np.ndarray,
    sample: int = 0,
) -> Trace:
    """Of a case's golden tensors those that leave the graphs, for one sample: image tokens of valid
    cameras, keys and values of self-attention layers at valid rows, actions."""
    found = native_runner.computed(expected, config, camera_mask, sample)
    return {
        name: value
        for name, value in found.items()
        if name in _OUT or _OF_CAMERA.fullmatch(name) or _is_plain(name, config)
    }


def _is_plain(name: str, config: ModelConfig) -> bool:
    """Keys of cross-attention layers leave the graph as the expert has projected them."""
    layer = _OF_KEY_VALUE.fullmatch(name)
    return (
        layer is not None
        and config.expert_layer_of(int(layer[1])) is not None
        and config.is_self_layer(int(layer[1]))
    )

"""SmolVLA among the models that Optimum's TasksManager knows how to export to ONNX.

Only who calls `register()` imports Optimum: Optimum has no place where packages are asked what they
know. The graphs are made by our exporter (command.py); the configuration here says what they take.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from smolvla_edge.errors import MissingExtraError

MODEL_TYPE = "smolvla"
TASK = "reinforcement-learning"
BACKEND = "onnx"
INPUTS: Mapping[str, Mapping[int, str]] = {
    "camera_mask": {},
    "tokens": {0: "words"},
    "token_mask": {0: "words_or_1"},
    "state": {},
    "noise": {0: "horizon"},
    "schedule": {0: "steps"},
    "pull_target": {0: "pulled"},
    "pull_weights": {0: "pulled"},
}
"""Of the graph `policy` but for frames, whose names are the cameras'."""
OUTPUTS: Mapping[str, Mapping[int, str]] = {
    "actions": {0: "horizon"},
    "normalized": {0: "horizon"},
}


def register() -> type:
    """Tell the TasksManager, once or again -> the configuration's class.

    Raises MissingExtraError where Optimum is not installed, or does not import.
    """
    try:
        base: Any = importlib.import_module("optimum.exporters.base").ExporterConfig
        tasks = importlib.import_module("optimum.exporters.tasks").TasksManager
        normalized = importlib.import_module("optimum.utils").NormalizedConfig
    except ImportError as error:
        raise MissingExtraError(
            f"Optimum does not import ({error}); run: pip install 'smolvla-edge[export]'. It needs "
            "the package requests and does not say so"
        ) from error

    class SmolVLAOnnxConfig(base):
        """Names and free axes of what `smolvla-edge export` writes."""

        NORMALIZED_CONFIG_CLASS = normalized

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            cameras: Any = getattr(self._config, "image_features", None) or ()
            frames = {name: {0: "height", 1: "width"} for name in cameras}
            return {**frames, **{name: dict(axes) for name, axes in INPUTS.items()}}

        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            return {name: dict(axes) for name, axes in OUTPUTS.items()}

    made: type = tasks.create_register(BACKEND, overwrite_existing=True)(MODEL_TYPE, TASK)(
        SmolVLAOnnxConfig
    )
    return made

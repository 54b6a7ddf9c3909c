"""A small checkpoint's bundles of every recipe, for tests of quantising."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from policy_helpers import IMAGES, STATE, TASK

from smolvla_edge.bundle_format import digest_of
from smolvla_edge.compress.quantize import quantize
from smolvla_edge.compress.recipe import RECIPES
from smolvla_edge.policy import load
from smolvla_edge.source import open_source

RECIPE_NAMES = ("int8", "balanced", "small")


def rounded_bundles(checkpoint: Path) -> dict[str, Path]:
    """A bundle of every recipe beside the checkpoint, rounded to nearest."""
    source = open_source(checkpoint)
    return {
        name: quantize(source, checkpoint.parent / name, RECIPES[name]).path
        for name in RECIPE_NAMES
    }


def actions(path: Path, **words: object) -> np.ndarray:
    return load(path, threads=1, **words).predict(IMAGES, STATE, TASK, seed=7).actions


def damaged(bundle: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the bundle whose bundle.json was changed, and its digest renewed."""
    copy = folder / "copy"
    shutil.copytree(bundle, copy)
    path = copy / "bundle.json"
    data = json.loads(path.read_text())
    change(data)
    data["digest"] = digest_of(data)
    path.write_text(json.dumps(data))
    return copy

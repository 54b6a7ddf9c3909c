"""Small checkpoints for tests, and ways to damage them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from smolvla_edge.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorLayout

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
GOLDEN_EXTRA = Path(__file__).parents[1] / "data" / "golden_extra"

Tensors = dict[str, tuple[str, np.ndarray]]  # LeRobot name -> dtype, values (BF16 as bits)


def golden_index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "index.json").read_text())


def read_tensors(path: Path) -> Tensors:
    file = SafetensorsFile(path)
    return {name: (entry.dtype, file.read(name)) for name, entry in file.entries.items()}


def write_tensors(path: Path, tensors: Tensors) -> None:
    layouts = [TensorLayout(name, dtype, a.shape) for name, (dtype, a) in tensors.items()]
    with SafetensorsWriter(path, layouts, {"format": "pt"}) as writer:
        for layout in writer.order:
            writer.write(layout.name, tensors[layout.name][1])


def change_tensors(folder: Path, change: Callable[[Tensors], None]) -> None:
    path = folder / "model.safetensors"
    tensors = read_tensors(path)
    change(tensors)
    write_tensors(path, tensors)


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

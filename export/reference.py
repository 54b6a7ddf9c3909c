"""What an export is held to: the native backend in float32, on what exported codes stand for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from smolvla_edge.codes import INPUT_SCALE, SCALE, CodeFormat
from smolvla_edge.export.stored import Weights
from smolvla_edge.names import expected_tensors
from smolvla_edge.safetensors_file import (
    SafetensorsFile,
    SafetensorsWriter,
    TensorEntry,
    TensorLayout,
)
from smolvla_edge.source import Source


@contextmanager
def float_tensors(source: Source, beside: Path) -> Iterator[Mapping[str, TensorEntry]]:
    """The source's tensors without codes, for as long as the body runs: each code times its scale
    (and its input's), in a file under `beside`. What a source has as floats stays where it is."""
    codes: Mapping[str, CodeFormat] = {} if source.bundle is None else source.bundle.codes
    if not codes:
        yield source.tensors
        return
    shapes = {name: spec.shape for name, spec in expected_tensors(source.model).items()}
    weights = Weights(source.model, source.tensors, {}, torch.float32, "qdq", (1, 1))
    beside_codes = {name + end for name in codes for end in (SCALE, INPUT_SCALE)}
    kept = {
        name: entry
        for name, entry in source.tensors.items()
        if name not in codes and name not in beside_codes
    }
    with tempfile.TemporaryDirectory(prefix=".reference-", dir=beside) as scratch:
        path = Path(scratch) / "weights.safetensors"
        layouts = [TensorLayout(name, "F32", shapes[name]) for name in codes]
        with SafetensorsWriter(path, layouts) as writer:
            for layout in writer.order:
                writer.write(layout.name, weights.array(layout.name))
        yield {**kept, **SafetensorsFile(path).entries}

"""Which layers cost actions: each group of weights as codes alone, everything else exact.

A group is what is computed together (q, k and v, say), because it takes one format. The rest of the
policy stays in float32 arithmetic, so that a difference of actions is this group's doing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.codes import CodeFormat, stacked_with
from smolvla_edge.compress.evidence import ActionError, Subject
from smolvla_edge.compress.observations import Observations
from smolvla_edge.compress.scales import least_squares
from smolvla_edge.compress.solve import weight_of
from smolvla_edge.config import ModelConfig
from smolvla_edge.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorLayout
from smolvla_edge.source import Source

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GroupError:
    """What one group costs: the error of actions as a share of their range, and what it saves in
    bytes against bfloat16."""

    group: str
    weights: tuple[str, ...]
    format: CodeFormat
    rms_of_range: float
    saved_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            "group": self.group,
            "format": self.format.name,
            "rms_of_range": self.rms_of_range,
            "saved_bytes": self.saved_bytes,
        }


def groups_of(model: ModelConfig, formats: Mapping[str, CodeFormat]) -> dict[str, tuple[str, ...]]:
    """{group: its weights}, in the order of `formats`."""
    layers = model.cross_expert_layers()
    found: dict[str, tuple[str, ...]] = {}
    for name in formats:
        key = stacked_with(name, layers).removesuffix(".weight")
        found[key] = (*found.get(key, ()), name)
    return found


def sensitivity(
    source: Source,
    formats: Mapping[str, CodeFormat],
    observations: Observations,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Iterator[GroupError]:
    """One result for each group, its weights rounded to nearest in the format it is to have."""
    exact = Subject(source, compute="float32", threads=threads).chunks(observations, seed)
    groups = groups_of(source.model, formats)
    with tempfile.TemporaryDirectory(prefix="smolvla-edge-") as folder:
        for number, (group, names) in enumerate(groups.items()):
            progress("each layer alone", number, len(groups))
            form = formats[names[0]]
            changed, saved = _with_codes(source, names, form, Path(folder) / "codes.safetensors")
            chunks = Subject(changed, compute="float32", threads=threads).chunks(observations, seed)
            error = ActionError.between(chunks, exact)
            yield GroupError(group, names, form, error.rms_of_range, saved)
        progress("each layer alone", len(groups), len(groups))


def _with_codes(
    source: Source, names: tuple[str, ...], form: CodeFormat, path: Path
) -> tuple[Source, int]:
    """The source with these weights as codes, which are written to `path`; the bytes saved."""
    codes = {name: least_squares(weight_of(source, name), form) for name in names}
    layouts: list[TensorLayout] = []
    stored: dict[str, NDArray[Any]] = {}
    saved = 0
    for name in names:
        shape = source.tensors[name].shape
        pair = form.layouts(name, shape)
        layouts += pair
        stored |= {
            layout.name: values for layout, values in zip(pair, codes[name].stored(), strict=True)
        }
        saved += 2 * int(np.prod(shape)) - sum(layout.nbytes for layout in pair)
    with SafetensorsWriter(path, layouts, {}) as writer:
        for layout in writer.order:
            writer.write(layout.name, stored[layout.name])
    return replace(source, tensors={**source.tensors, **SafetensorsFile(path).entries}), saved

"""From a policy to a bundle whose weights are integer codes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.bundle import Bundle
from smolvla_edge.bundle_writer import Contents, put_bundle
from smolvla_edge.codes import SCALE, CodeFormat, Codes, round_to_nearest
from smolvla_edge.compress.recipe import Recipe
from smolvla_edge.errors import QuantizationError
from smolvla_edge.paths import shown
from smolvla_edge.precision import convert_chunks, stored_dtype
from smolvla_edge.safetensors_file import (
    TensorEntry,
    TensorLayout,
    as_float32,
    iter_tensor_bytes,
    read_tensor,
)
from smolvla_edge.source import Source
from smolvla_edge.version import __version__

Solve = Callable[[str, NDArray[np.float32], CodeFormat], Codes]
"""A weight [out, in] of that name -> its codes."""
Progress = Callable[[int, int], None]  # weights done, in all


def nearest(name: str, weight: NDArray[np.float32], form: CodeFormat) -> Codes:
    """Round to nearest: no data, no search."""
    return round_to_nearest(weight, form)


def quantize(
    source: Source,
    dest: str | os.PathLike[str],
    recipe: Recipe,
    *,
    solve: Solve = nearest,
    solver: str = "nearest",
    progress: Progress | None = None,
    force: bool = False,
    command: str | None = None,
) -> Bundle:
    """Write the bundle `dest` with the weights that `recipe` names as codes.

    Other matrices of a checkpoint are stored in bfloat16 (as `convert --dtype bfloat16` does);
    those of a bundle stay as they are. The bundle computes in bfloat16 where weights are no codes.
    Raises QuantizationError for a source that holds codes already, BundleError for the target.
    """
    if any(entry.dtype in ("I8", "U8") for entry in source.tensors.values()):
        raise QuantizationError(
            "the source holds codes already: a second rounding would be measured against the "
            "first. Quantise the bundle or checkpoint that it was made from"
        )
    formats = recipe.formats(source.model)
    codes: dict[str, Codes] = {}
    for number, (name, form) in enumerate(formats.items()):
        if progress is not None:
            progress(number, len(formats))
        weight = read_weight(source.tensors[name])
        try:
            codes[name] = solve(name, weight, form)
        except QuantizationError as cause:
            raise QuantizationError(f"{name}: {cause}") from cause
    if progress is not None:
        progress(len(formats), len(formats))
    contents = Contents(
        model=source.model,
        contract=source.contract,
        tokenizer_file=source.tokenizer_file,
        layouts=_layouts(source, formats),
        chunks=_Chunks(source, codes),
        provenance={
            **source.provenance,
            "converter": f"smolvla-edge {__version__}",
            "command": None if command is None else shown(command),
            "quantized": {"recipe": recipe.name, "solver": solver},
        },
        compute="bfloat16",
        codes=formats,
    )
    return put_bundle(contents, dest, force=force)


def read_weight(entry: TensorEntry) -> NDArray[np.float32]:
    return as_float32(read_tensor(entry), entry.dtype)


def _layouts(source: Source, formats: Mapping[str, CodeFormat]) -> list[TensorLayout]:
    layouts: list[TensorLayout] = []
    for name, entry in source.tensors.items():
        if name in formats:
            layouts += formats[name].layouts(name, entry.shape)
        else:
            layouts.append(TensorLayout(name, _dtype(source, name), entry.shape))
    return layouts


def _dtype(source: Source, name: str) -> str:
    kept = "keep" if source.bundle is not None else "bfloat16"
    return stored_dtype(name, source.tensors[name], source.model.cross_expert_layers(), kept)


class _Chunks:
    """The bytes of each tensor of the new bundle."""

    def __init__(self, source: Source, codes: Mapping[str, Codes]) -> None:
        self._source, self._codes = source, codes

    def __call__(self, layout: TensorLayout) -> Iterator[bytes]:
        weight = layout.name.removesuffix(SCALE)
        if weight in self._codes:
            codes, scales = self._codes[weight].stored()
            yield (scales if layout.name.endswith(SCALE) else codes).tobytes()
            return
        entry = self._source.tensors[layout.name]
        yield from convert_chunks(iter_tensor_bytes(entry), entry.dtype, layout.dtype, entry.name)


__all__ = ["Progress", "Solve", "nearest", "quantize", "read_weight"]

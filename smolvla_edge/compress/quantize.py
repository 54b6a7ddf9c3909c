"""From a policy to a bundle whose weights are integer codes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from smolvla_edge.bundle import Bundle
from smolvla_edge.bundle_writer import Contents, check_target, check_tokenizer, put_bundle
from smolvla_edge.codes import INPUT_SCALE, SCALE, CodeFormat
from smolvla_edge.compress.observations import Observations
from smolvla_edge.compress.recipe import Recipe
from smolvla_edge.compress.solve import Progress, Solution, calibrated, rounded
from smolvla_edge.errors import QuantizationError
from smolvla_edge.healed import note_of
from smolvla_edge.paths import shown
from smolvla_edge.precision import convert_chunks, stored_dtype
from smolvla_edge.safetensors_file import TensorLayout, iter_tensor_bytes
from smolvla_edge.source import Source
from smolvla_edge.version import __version__


def quantize(
    source: Source,
    dest: str | os.PathLike[str],
    recipe: Recipe,
    observations: Observations | None = None,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
    command: str | None = None,
) -> Bundle:
    """Write the bundle `dest` with the weights that `recipe` names as codes.

    Without observations weights are rounded (scales.py); with them they are fitted (solve.py, extra
    torch), and an interrupted calibration goes on when it is asked for again. Other matrices of a
    checkpoint are stored in bfloat16 (as `convert --dtype bfloat16` does); those of a bundle stay
    as they are. The bundle computes in bfloat16 where weights are no codes. Raises
    QuantizationError for a source that holds codes already, BundleError for the target,
    TokenizerError for a checkpoint whose tokenizer is missing or malformed.
    """
    refuse_codes(source)
    check_target(Path(dest), force)
    formats = recipe.formats(source.model)
    keep = calibration_file(dest)
    if observations is None:
        solution = rounded(source, formats, progress)
    else:
        keep.parent.mkdir(parents=True, exist_ok=True)
        solution = calibrated(
            source, formats, observations, seed=seed, threads=threads, progress=progress, keep=keep
        )
    made = write_codes(source, dest, recipe.name, solution, force=force, command=command)
    keep.unlink(missing_ok=True)
    return made


def calibration_file(dest: str | os.PathLike[str]) -> Path:
    """Where a calibration for the bundle `dest` is kept until the bundle is there."""
    return Path(dest).with_name(f".{Path(dest).name}.calibration.safetensors")


def refuse_codes(source: Source) -> None:
    """Raises QuantizationError for a source that holds codes."""
    if any(entry.dtype in ("I8", "U8") for entry in source.tensors.values()):
        raise QuantizationError(
            "the source holds codes already: a second rounding would be measured against the "
            "first. Quantise the bundle or checkpoint that it was made from"
        )


def write_codes(
    source: Source,
    dest: str | os.PathLike[str],
    recipe: str,
    solution: Solution,
    *,
    force: bool = False,
    command: str | None = None,
) -> Bundle:
    """The bundle of a solution. Raises BundleError for the target, TokenizerError."""
    if source.bundle is None:
        check_tokenizer(str(source.provenance["source"]), source.tokenizer_file, source.contract)
    formats = solution.formats()
    contents = Contents(
        model=source.model,
        contract=source.contract,
        tokenizer_file=source.tokenizer_file,
        layouts=_layouts(source, formats, solution),
        chunks=_Chunks(source, solution),
        provenance={
            **source.provenance,
            "converter": f"smolvla-edge {__version__}",
            "command": None if command is None else shown(command),
            "quantized": {"recipe": recipe, **solution.notes},
            **note_of(source),
        },
        compute="bfloat16",
        codes=formats,
    )
    return put_bundle(contents, dest, force=force)


def _layouts(
    source: Source, formats: Mapping[str, CodeFormat], solution: Solution
) -> list[TensorLayout]:
    layouts: list[TensorLayout] = []
    for name, entry in source.tensors.items():
        if name in formats:
            layouts += formats[name].layouts(name, entry.shape)
        elif name in solution.changed:
            layouts.append(TensorLayout(name, "F32", entry.shape))
        else:
            layouts.append(TensorLayout(name, _dtype(source, name), entry.shape))
    return layouts


def _dtype(source: Source, name: str) -> str:
    kept = "keep" if source.bundle is not None else "bfloat16"
    return stored_dtype(name, source.tensors[name], source.model.cross_expert_layers(), kept)


class _Chunks:
    """The bytes of each tensor of the new bundle."""

    def __init__(self, source: Source, solution: Solution) -> None:
        self._source, self._solution = source, solution

    def __call__(self, layout: TensorLayout) -> Iterator[bytes]:
        weight = layout.name.removesuffix(INPUT_SCALE).removesuffix(SCALE)
        if weight in self._solution.codes:
            form = self._solution.formats()[weight]
            names = [x.name for x in form.layouts(weight, self._source.tensors[weight].shape)]
            yield self._solution.stored(weight)[names.index(layout.name)].tobytes()
            return
        if layout.name in self._solution.changed:
            yield self._solution.changed[layout.name].astype("<f4").tobytes()
            return
        entry = self._source.tensors[layout.name]
        yield from convert_chunks(iter_tensor_bytes(entry), entry.dtype, layout.dtype, entry.name)

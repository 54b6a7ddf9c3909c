"""Codes for all weights of a recipe: rounded, or fitted to calibration data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.codes import CodeFormat, Codes, is_table, may_scale_inputs
from smolvla_edge.compress import smooth
from smolvla_edge.compress.calibrate import LayerInputs, layer_inputs, smoothed
from smolvla_edge.compress.gptq import gptq
from smolvla_edge.compress.observations import Observations
from smolvla_edge.compress.scales import least_squares
from smolvla_edge.errors import QuantizationError
from smolvla_edge.safetensors_file import as_float32, read_tensor
from smolvla_edge.source import Source

Progress = Callable[[str, int, int], None]  # what is done, how many of how many


@dataclass(frozen=True)
class Solution:
    """codes: by canonical name of the weight. changed: other tensors that smoothing folds its
    factors into, float32. input_scales: of weights whose factors nothing takes, float32 [in].
    notes: what was done, for the bundle's provenance."""

    codes: Mapping[str, Codes]
    changed: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)
    input_scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def formats(self) -> dict[str, CodeFormat]:
        """How each weight is stored."""
        return {
            name: replace(codes.format, input_scale=name in self.input_scales)
            for name, codes in self.codes.items()
        }

    def stored(self, name: str) -> tuple[NDArray[np.generic], ...]:
        """The tensors of a weight, as its format's `layouts` lists them."""
        factors = self.input_scales.get(name)
        return self.codes[name].stored() + (() if factors is None else (factors,))


def rounded(
    source: Source, formats: Mapping[str, CodeFormat], progress: Progress | None = None
) -> Solution:
    """The nearest codes, without data (scales.py)."""
    codes = {}
    for number, (name, form) in enumerate(formats.items()):
        _say(progress, "rounding", number, len(formats))
        codes[name] = _named(name, least_squares, weight_of(source, name), form)
    _say(progress, "rounding", len(formats), len(formats))
    return Solution(codes, notes={"solver": "nearest"})


def calibrated(
    source: Source,
    formats: Mapping[str, CodeFormat],
    observations: Observations,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
    keep: Path | None = None,
) -> Solution:
    """Smooth inputs, then GPTQ for the weights of 4 bits and rounding for those of 8.

    keep: a file in which an interrupted calibration goes on. Raises what `layer_inputs` raises.
    """
    inputs = gather(
        source, formats, observations, seed=seed, threads=threads, progress=progress, keep=keep
    )
    notes = {"calibration": observations.evidence(), "seed": seed}
    return fitted(source, formats, inputs, notes, progress)


def gather(
    source: Source,
    formats: Mapping[str, CodeFormat],
    observations: Observations,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
    keep: Path | None = None,
) -> dict[str, LayerInputs]:
    """What `fitted` needs to know of these weights' inputs, for these formats or longer ones."""
    four = {name for name, form in formats.items() if form.bits == 4}
    matrices = [name for name in formats if not is_table(name)]
    return layer_inputs(
        source, observations, matrices, four, seed=seed, threads=threads,
        progress=lambda done, total: _say(progress, "calibrating", done, total), keep=keep,
    )  # fmt: skip


def fitted(
    source: Source,
    formats: Mapping[str, CodeFormat],
    gathered: Mapping[str, LayerInputs],
    notes: Mapping[str, object],
    progress: Progress | None = None,
) -> Solution:
    """The codes for inputs that `gather` found; `gathered` stays as it is."""
    inputs = dict(gathered)
    tensors: dict[str, NDArray[np.float32]] = {name: weight_of(source, name) for name in formats}
    changed, factors = _smooth(source, formats, inputs, tensors)
    codes = {}
    for number, (name, form) in enumerate(formats.items()):
        _say(progress, "fitting", number, len(formats))
        hessian = inputs[name].hessian if name in inputs else None
        if form.bits == 4 and hessian is not None:
            codes[name] = _named(name, partial(gptq, hessian=hessian), tensors[name], form)
        else:
            codes[name] = _named(name, least_squares, tensors[name], form)
    _say(progress, "fitting", len(formats), len(formats))
    found = {"solver": "smooth+gptq", "smoothed": list(factors), **notes}
    own = {n: np.float32(1) / s for n, s in factors.items() if may_scale_inputs(n)}
    return Solution(codes, changed, found, own)


def _smooth(
    source: Source,
    formats: Mapping[str, CodeFormat],
    inputs: dict[str, LayerInputs],
    tensors: dict[str, NDArray[np.float32]],
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Smooth each place whose readers are codes, in `tensors` and `inputs`; -> the other
    tensors that changed, and the factors of each smoothed place by its first reader."""
    changed: dict[str, NDArray[np.float32]] = {}
    done: dict[str, NDArray[np.float32]] = {}
    for spot in smooth.spots(source.model):
        if any(name not in formats for name in spot.readers):
            continue
        if spot.readers[0] not in inputs:  # healed weights do without this layer
            continue
        # A matrix that stays in bfloat16 would be rounded again.
        if any(len(source.tensors[m].shape) == 2 and m not in formats for m in spot.makers):
            continue
        form = formats[spot.readers[0]]
        weights = [tensors[name] for name in spot.readers]
        s = smooth.best_factors(inputs[spot.readers[0]], weights, form)
        if s is None:
            continue
        for name in spot.makers:
            if name not in tensors:
                tensors[name] = weight_of(source, name)
        for name, value in smooth.apply(spot, s, tensors).items():
            tensors[name] = value
            if name not in formats:
                changed[name] = value
        for name in spot.readers:
            inputs[name] = smoothed(inputs[name], s)
        done[spot.readers[0]] = s
    return changed, done


def weight_of(source: Source, name: str) -> NDArray[np.float32]:
    entry = source.tensors[name]
    return as_float32(read_tensor(entry), entry.dtype)


def _named(
    name: str,
    solve: Callable[[NDArray[np.float32], CodeFormat], Codes],
    weight: NDArray[np.float32],
    form: CodeFormat,
) -> Codes:
    try:
        return solve(weight, form)
    except QuantizationError as cause:
        raise QuantizationError(f"{name}: {cause}") from cause


def _say(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress is not None:
        progress(what, done, total)

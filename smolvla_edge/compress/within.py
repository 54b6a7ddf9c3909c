"""Quantising to a bound of the action error: measure the layers, then lengthen the recipe."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from smolvla_edge.bundle import Bundle
from smolvla_edge.bundle_writer import check_target
from smolvla_edge.compress.auto import Attempt, Formats, lengthen
from smolvla_edge.compress.evidence import ActionError, Subject
from smolvla_edge.compress.observations import Observations
from smolvla_edge.compress.quantize import calibration_file, refuse_codes, write_codes
from smolvla_edge.compress.recipe import Recipe
from smolvla_edge.compress.sensitivity import sensitivity
from smolvla_edge.compress.solve import Progress, fitted, gather
from smolvla_edge.source import Source, open_source

_FOR_EACH_LAYER = 4  # of the held-out observations: layers differ by orders of magnitude


def quantize_within(
    source: Source,
    dest: str | os.PathLike[str],
    recipe: Recipe,
    observations: Observations,
    held_out: Observations,
    max_error: float,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = lambda what, done, total: None,
    attempted: Callable[[Attempt], None] = lambda attempt: None,
    force: bool = False,
    command: str | None = None,
) -> Bundle:
    """As `quantize` with observations, and more bits for the layers that need them (auto.py).

    max_error: of the actions on `held_out` against float32, rms as a share of their range.
    attempted: told of every set of formats that was measured. Raises QuantizationError too when
    the bound cannot be met: nothing is written then.
    """
    refuse_codes(source)
    beginning = recipe.formats(source.model)
    check_target(Path(dest), force)
    # Noises that calibration, which counts from `seed`, does not draw.
    held_seed = seed + len(observations)
    few = held_out.first(_FOR_EACH_LAYER)
    costs = list(
        sensitivity(source, beginning, few, seed=held_seed, threads=threads, progress=progress)
    )
    keep = calibration_file(dest)
    keep.parent.mkdir(parents=True, exist_ok=True)
    inputs = gather(
        source, beginning, observations, seed=seed, threads=threads, progress=progress, keep=keep
    )
    exact = Subject(source, compute="float32", threads=threads).chunks(
        held_out, held_seed, lambda done, total: progress("the exact policy", done, total)
    )
    notes = {"calibration": observations.evidence(), "seed": seed}
    target = Path(dest)
    target.parent.mkdir(parents=True, exist_ok=True)

    def error_of(formats: Formats) -> float:
        solution = fitted(source, formats, inputs, notes, progress)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantize-") as folder:
            tried = write_codes(source, Path(folder) / "bundle", recipe.name, solution)
            subject = Subject(open_source(tried.path), threads=threads)
            got = subject.chunks(
                held_out, held_seed, lambda done, total: progress("measuring", done, total)
            )
        return ActionError.between(got, exact).rms_of_range

    attempts = []
    for attempt in lengthen(costs, max_error, error_of):
        attempts.append(attempt)
        attempted(attempt)
    found = attempts[-1]
    notes |= {
        "max_error": max_error,
        "held_out": held_out.evidence(),
        "rms_of_range": [attempt.rms_of_range for attempt in attempts],
    }
    solution = fitted(source, found.formats, inputs, notes, progress)
    made = write_codes(source, target, recipe.name, solution, force=force, command=command)
    keep.unlink(missing_ok=True)
    return made

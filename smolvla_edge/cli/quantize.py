"""`smolvla-edge quantize`: a bundle of 8-bit and 4-bit weights, and what that costs."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output
from smolvla_edge.errors import BundleError

if TYPE_CHECKING:
    from smolvla_edge.compress.auto import Attempt
    from smolvla_edge.source import Source


def quantize(
    source: args.Source,
    bundle: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The directory to make.", show_default=False),
    ],
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE",
            help="balanced: 8-bit vision and language, 4-bit expert. small: 4-bit vision "
            "and an 8-bit embedding table too. int8: 8 bits everywhere. Or a .toml file of "
            "rules. nf4, fp4: a checkpoint in bitsandbytes' format (extra quant).",
        ),
    ] = "balanced",
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DIR|synthetic",
            show_default=False,
            help="What to fit the weights to: a LeRobotDataset v3.0 folder (extra data), a folder "
            "with observations.json, or synthetic noise. Without it weights are rounded.",
        ),
    ] = None,
    observations: Annotated[
        int, typer.Option("--observations", min=1, metavar="N", help="Of --data, spread over it.")
    ] = 256,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error",
            min=0.0,
            metavar="PERCENT",
            show_default=False,
            help="Give the layers that cost most more bits until the actions on held-out "
            "observations are within this, rms in percent of their range. Needs --data.",
        ),
    ] = None,
    held_out: Annotated[
        int, typer.Option("--held-out", min=1, metavar="N", help="Observations for --max-error.")
    ] = 64,
    seed: args.Seed = 0,
    threads: args.Threads = None,
    rename: args.Rename = None,
    tokenizer: args.TokenizerFile = None,
    stats: args.Stats = None,
    allow_unnormalized: args.AllowUnnormalized = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle of that name.")] = False,
    as_json: args.AsJson = False,
) -> None:
    """Make a bundle whose large matrices are 8-bit and 4-bit integers.

    They are integers in memory and in the products: activations are rounded to 8 bits while
    running, each token by a scale of its own, and sums are exact. Norms, softmax, the residual
    stream, the keys and values that all denoise steps read, and the heads stay floating point.

    With --data the weights are fitted: inputs with outliers are smoothed (SmoothQuant), 4-bit
    weights chosen so that each layer's output stays (GPTQ), from the policy's own run over the
    observations (extra torch); when that is interrupted, the same command goes on. Without it they
    are rounded to nearest.

    With --max-error the recipe is where the search begins: every layer's own cost is measured, and
    the worst get more bits until the whole policy is close enough. If it never is, nothing is
    written.

    A quantised policy is another policy: measure it before a robot moves.

    \b
    Examples:
      smolvla-edge quantize my_bundle my_small_bundle --data my_recordings
      smolvla-edge quantize my_bundle my_int8_bundle --recipe int8
      smolvla-edge quantize my_bundle my_safe_bundle --data my_recordings --max-error 1

    \b
    What to do next:
      smolvla-edge inspect my_small_bundle
      smolvla-edge verify my_small_bundle --against exact --frames my_recordings
    """
    from smolvla_edge.compress.four_bit_writer import TYPES
    from smolvla_edge.compress.observations import find_observations
    from smolvla_edge.compress.quantize import quantize as make
    from smolvla_edge.compress.recipe import find_recipe
    from smolvla_edge.compress.within import quantize_within
    from smolvla_edge.source import open_source

    started = time.perf_counter()
    if not force and os.path.lexists(bundle):  # said before the work, not after it
        raise BundleError(f"{bundle} exists: choose another name, or pass --force to replace it")
    if max_error is not None and data is None:
        raise typer.BadParameter("--max-error needs --data")
    if recipe in TYPES and (data is not None or force):
        raise typer.BadParameter(
            f"{recipe} rounds without --data, and replaces no checkpoint: expected no --data, "
            "--max-error or --force"
        )
    chosen = None if recipe in TYPES else find_recipe(recipe)
    with output.busy(f"reading {source}"):
        opened = open_source(
            source,
            rename=args.pairs(rename, "--rename") or None,
            tokenizer=tokenizer,
            stats=stats,
            allow_unnormalized=allow_unnormalized,
        )
    if chosen is None:
        _four_bit(opened, bundle, recipe, as_json)
        return
    seen = None
    if data is not None:
        count = observations + (held_out if max_error is not None else 0)
        seen = find_observations(opened, data, count, seed=seed)
    command = "smolvla-edge " + shlex.join(sys.argv[1:])
    with output.stages() as report:
        if seen is not None and max_error is not None:
            seen, last = seen.split(held_out)
            made = quantize_within(
                opened, bundle, chosen, seen, last, max_error / 100, seed=seed, threads=threads,
                progress=report, attempted=_attempted, force=force, command=command,
            )  # fmt: skip
        else:
            made = make(
                opened, bundle, chosen, seen, seed=seed, threads=threads, progress=report,
                force=force, command=command,
            )  # fmt: skip
    size = sum(record.nbytes for record in made.files.values())
    before = sum(entry.nbytes for entry in opened.tensors.values())
    result: dict[str, Any] = {
        "bundle": str(bundle),
        "digest": made.digest,
        "recipe": chosen.name,
        "quantized": made.provenance["quantized"],
        "precision": made.precision,
        "bytes": size,
        "source_bytes": before,
        "seconds": round(time.perf_counter() - started, 1),
    }
    if as_json:
        output.emit_json(result)
        return
    rows = [
        (part, ", ".join(f"{count} {kind}" for kind, count in counts.items()))
        for part, counts in made.precision.items()
    ]
    output.print_facts(
        f"bundle {bundle}",
        [
            ("digest", made.digest),
            ("size", f"{output.megabytes(size)} of {output.megabytes(before)}"),
            *rows,
            ("fitted to", "nothing: rounded to nearest" if seen is None else
                          f"{len(seen)} observations, {seen.kind}"),
            ("time", f"{result['seconds']} s"),
            ("next", f"smolvla-edge verify {shlex.quote(str(bundle))} --against exact "
                     "--frames ..."),
        ],
    )  # fmt: skip
    if seen is not None and seen.kind == "synthetic":
        output.warn("fitted to synthetic noise: good for trying, not for a robot")


def _four_bit(opened: Source, dest: Path, kind: str, as_json: bool) -> None:
    from smolvla_edge.compress.four_bit_writer import write_four_bit

    with output.stages() as report:
        made = write_four_bit(opened, dest, kind, progress=report)
    if as_json:
        output.emit_json({"checkpoint": str(dest), "type": kind, **made})
        return
    output.print_facts(
        f"checkpoint {dest}",
        [
            ("in 4 bits", f"{made['weights']} matrices, {kind}, blocks of 64, double quantisation"),
            ("size", output.megabytes(made["bytes"])),
            ("next", f"smolvla-edge convert {shlex.quote(str(dest))} BUNDLE decodes it"),
        ],
    )


def _attempted(attempt: Attempt) -> None:
    kinds: dict[str, int] = {}
    for form in attempt.formats.values():
        kinds[form.name] = kinds.get(form.name, 0) + 1
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    output.note(f"{told}: rms {attempt.rms_of_range:.3%} of the range")

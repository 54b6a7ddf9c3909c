"""`smolvla-edge quantize`: a bundle of 8-bit and 4-bit weights, and what that costs."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output
from smolvla_edge.errors import BundleError

if TYPE_CHECKING:
    from smolvla_edge.compress.solve import Progress


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
            help="balanced: 8-bit vision and language, 4-bit expert. small: 4-bit vision too. "
            "int8: 8 bits everywhere. Or a .toml file with rules.",
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
    seed: args.Seed = 0,
    threads: args.Threads = None,
    rename: args.Rename = None,
    tokenizer: args.TokenizerFile = None,
    stats: args.Stats = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle of that name.")] = False,
    as_json: args.AsJson = False,
) -> None:
    """Make a bundle whose large matrices are 8-bit and 4-bit integers.

    They are integers in memory and in the products: activations are rounded to 8 bits while
    running, each token by a scale of its own, and sums are exact. Norms, softmax, the residual
    stream, the keys and values that all denoise steps read, and the heads stay floating point.

    With --data the weights are fitted: inputs with outliers are smoothed (SmoothQuant), 4-bit
    weights chosen so that each layer's output stays (GPTQ), from the policy's own run over the
    observations (extra torch). Without it they are rounded to nearest.

    A quantised policy is another policy: measure it before a robot moves.

    \b
    Examples:
      smolvla-edge quantize my_bundle my_small_bundle --data my_recordings
      smolvla-edge quantize my_bundle my_int8_bundle --recipe int8

    \b
    What to do next:
      smolvla-edge inspect my_small_bundle
      smolvla-edge eval my_bundle --against-policy my_small_bundle --dataset my_recordings
    """
    from smolvla_edge.compress.observations import find_observations
    from smolvla_edge.compress.quantize import quantize as make
    from smolvla_edge.compress.recipe import find_recipe
    from smolvla_edge.source import open_source

    started = time.perf_counter()
    if not force and os.path.lexists(bundle):  # said before the work, not after it
        raise BundleError(f"{bundle} exists: choose another name, or pass --force to replace it")
    chosen = find_recipe(recipe)
    with output.busy(f"reading {source}"):
        opened = open_source(
            source,
            rename=args.pairs(rename, "--rename") or None,
            tokenizer=tokenizer,
            stats=stats,
        )
    seen = None
    if data is not None:
        seen = find_observations(opened, data, observations, seed=seed)
    command = "smolvla-edge " + shlex.join(sys.argv[1:])
    with _stages() as report:
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
            ("next", f"smolvla-edge eval {shlex.quote(source)} --against-policy "
                     f"{shlex.quote(str(bundle))} --dataset ..."),
        ],
    )  # fmt: skip
    if seen is not None and seen.kind == "synthetic":
        output.warn("fitted to synthetic noise: good for trying, not for a robot")


@contextmanager
def _stages() -> Iterator[Progress]:
    """Progress of several stages, one bar after the other."""
    with ExitStack() as bar:
        stage, show = "", None

        def report(what: str, done: int, total: int) -> None:
            nonlocal stage, show
            if show is None or what != stage:
                bar.close()
                stage, show = what, bar.enter_context(output.progress(what, unit_bytes=False))
            show(done, total)

        yield report

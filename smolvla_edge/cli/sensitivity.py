"""`smolvla-edge sensitivity`: what each layer would cost as 8-bit or 4-bit integers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output

_SHOWN = 12


def sensitivity(
    source: args.Source,
    data: args.Data,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME|FILE", help="The formats to try.")
    ] = "balanced",
    observations: Annotated[
        int, typer.Option("--observations", min=1, metavar="N", help="Of --data, spread over it.")
    ] = 4,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.svg", show_default=False, help="Draw it too (viz)."),
    ] = None,
    seed: args.Seed = 0,
    threads: args.Threads = None,
    rename: args.Rename = None,
    as_json: args.AsJson = False,
) -> None:
    """Measure what each layer costs as codes, all others exact.

    Layers that are computed together (q, k and v) count as one. The cost is the error of the
    policy's actions against float32, rms as a share of their range. Layers are rounded to nearest:
    what fitting saves comes on top.

    \b
    Example:
      smolvla-edge sensitivity my_bundle --data my_recordings --plot layers.svg

    \b
    Read next: smolvla-edge quantize --help (--max-error acts on it)
    """
    from smolvla_edge.compress.observations import find_observations
    from smolvla_edge.compress.quantize import refuse_codes
    from smolvla_edge.compress.recipe import find_recipe
    from smolvla_edge.compress.sensitivity import sensitivity as measure
    from smolvla_edge.plot import check_plot_path, require_matplotlib
    from smolvla_edge.source import open_source

    if plot is not None:  # said before the work, not after it
        check_plot_path(plot)
        require_matplotlib()
    chosen = find_recipe(recipe)
    with output.busy(f"reading {source}"):
        opened = open_source(source, rename=args.pairs(rename, "--rename") or None)
    refuse_codes(opened)
    seen = find_observations(opened, data, observations, seed=seed)
    with output.stages() as report:
        costs = list(
            measure(opened, chosen.formats(opened.model), seen, seed=seed, threads=threads,
                    progress=report)
        )  # fmt: skip
    result: dict[str, Any] = {
        "source": source,
        "recipe": chosen.name,
        "observations": seen.evidence(),
        "seed": seed,
        "groups": [cost.to_json() for cost in costs],
    }
    if plot is not None:
        from smolvla_edge.compress.plots import plot_sensitivity

        title = f"Each layer alone as codes, recipe {chosen.name}"
        plot_sensitivity(costs, plot, f"{title}: {len(seen)} observations, {seen.kind}")
    if as_json:
        output.emit_json(result)
        return
    worst = sorted(costs, key=lambda cost: -cost.rms_of_range)
    output.print_table(
        f"{min(_SHOWN, len(worst))} of {len(worst)} groups, the costliest first",
        [("layer", "left"), ("format", "left"), ("rms of range", "right"), ("saves", "right")],
        [
            (c.group, c.format.name, f"{c.rms_of_range:.3%}", output.megabytes(c.saved_bytes))
            for c in worst[:_SHOWN]
        ],
    )
    if plot is not None:
        output.note(f"drawn in {plot}")
    if seen.kind == "synthetic":
        output.warn("measured on synthetic noise: good for trying, not for a robot")

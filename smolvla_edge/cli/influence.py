"""`smolvla-edge influence`: what each layer does to the actions, and which to leave out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smolvla_edge.compress.greedy import Point
    from smolvla_edge.compress.skip import Influence

_SHOWN = 20


def influence(
    source: args.Source,
    data: args.Data,
    observations: Annotated[
        int, typer.Option("--observations", min=1, metavar="N", help="Of --data, spread over it.")
    ] = 64,
    greedy: Annotated[
        int | None,
        typer.Option(
            "--greedy",
            min=1,
            metavar="N",
            show_default=False,
            help="Also leave out up to N layers, one after the other, the cheapest first.",
        ),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error",
            min=0.0,
            metavar="PERCENT",
            show_default=False,
            help="Also leave out layers until the next would bring the action error beyond this.",
        ),
    ] = None,
    parts: Annotated[
        str,
        typer.Option(
            "--parts",
            metavar="WORDS",
            help="What may be left out: vision, vlm, expert; cells are the expert's layers in "
            "single denoise steps, which then add what they added last.",
        ),
    ] = "vision,vlm,expert",
    plan: Annotated[
        str,
        typer.Option("--plan", metavar="PLAN", help="What leaving out begins from: steps=4, say."),
    ] = "exact",
    every: Annotated[
        bool,
        typer.Option("--every", help="Measure every candidate in every round, not likely ones."),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.svg", show_default=False, help="Draw it too (viz)."),
    ] = None,
    seed: args.Seed = 0,
    threads: args.Threads = None,
    rename: args.Rename = None,
    as_json: args.AsJson = False,
) -> None:
    """Measure what the actions lose with each layer left out alone, and with several.

    The action error is the difference of the executed actions with and without the layer, from the
    same noise, rms as a share of their range. Block influence is one less the cosine of what goes
    into a layer and what comes out. Both say something about actions, nothing about success: play
    the plan before you trust it (smolvla-edge eval).

    With --greedy or --max-error layers go one after the other, each time the one that costs least
    beside those that went before. The last line is a plan to paste.

    \b
    Examples:
      smolvla-edge influence my_bundle --data my_recordings --plot layers.svg
      smolvla-edge influence my_bundle --data my_recordings --max-error 5 --parts vision

    \b
    Read next: smolvla-edge heal --help (what the neighbours can learn to make up for)
    """
    from smolvla_edge.compress.greedy import greedy as remove
    from smolvla_edge.compress.observations import find_observations
    from smolvla_edge.compress.skip import rank_layers
    from smolvla_edge.plan_words import write_words
    from smolvla_edge.plot import check_plot_path, require_matplotlib
    from smolvla_edge.presets import resolve_plan
    from smolvla_edge.source import open_source

    if plot is not None:  # said before the work, not after it
        check_plot_path(plot)
        require_matplotlib()
    with output.busy(f"reading {source}"):
        opened = open_source(source, rename=args.pairs(rename, "--rename") or None)
    begin = resolve_plan(plan, opened.model.num_steps, opened.presets)
    seen = find_observations(opened, data, observations, seed=seed).first(observations)
    curve: list[Point] = []
    with output.stages() as report:
        found = rank_layers(opened, seen, seed=seed, threads=threads, progress=report)
        if greedy is not None or max_error is not None:
            bound = None if max_error is None else max_error / 100
            words = [word.strip() for word in parts.split(",") if word.strip()]
            for point in remove(
                opened, seen, words, plan=begin, count=greedy, max_error=bound, every=every,
                seed=seed, threads=threads, progress=report,
            ):  # fmt: skip
                curve.append(point)
    told = None
    if curve:  # of the chunk's rows as many as the user's own plan says
        shortest = replace(curve[-1].plan, horizon=begin.horizon)
        told = write_words(shortest, opened.model.num_steps)
    result: dict[str, Any] = {
        "source": source,
        **found.to_json(),
        "greedy": [point.to_json() for point in curve] if curve else None,
        "plan_words": told,
    }
    if plot is not None:
        from smolvla_edge.compress.skip_plots import plot_influence

        title = f"Without each layer: {len(seen)} observations, {seen.kind}"
        plot_influence(found, plot, title, curve)
    if as_json:
        output.emit_json(result)
        return
    _print_layers(found)
    if curve:
        _print_curve(curve)
        output.say(f"--plan {told}")
    if plot is not None:
        output.note(f"drawn in {plot}")
    if seen.kind == "synthetic":
        output.warn("measured on synthetic noise: good for trying, not for a robot")


def _print_layers(found: Influence) -> None:
    layers = sorted(
        (item for items in found.parts.values() for item in items),
        key=lambda item: item.action_error,
    )
    output.print_table(
        f"{min(_SHOWN, len(layers))} of {len(layers)} layers, those that cost least first",
        [("part", "left"), ("layer", "right"), ("rms of range", "right"),
         ("block influence", "right")],
        [
            (x.part, x.layer, f"{x.action_error:.3%}", f"{x.block_influence:.4f}")
            for x in layers[:_SHOWN]
        ],
    )  # fmt: skip
    for item in found.left_out:
        output.note(f"{item.part} {item.layer} is not measured: {item.why}")


def _print_curve(curve: Sequence[Point]) -> None:
    whole = curve[0].multiply_adds
    rows = []
    for point in curve:
        gone = point.gone
        name = "-" if gone is None else f"{gone.part} {gone.layer}"
        step = "" if gone is None or gone.step is None else f" in step {gone.step}"
        work = f"{point.multiply_adds / 1e6:.1f} M, {point.multiply_adds / whole:.1%}"
        rows.append((name + step, f"{point.action_error:.3%}", work, point.measured))
    output.print_table(
        "left out one after the other",
        [("without", "left"), ("rms of range", "right"), ("multiply-adds left", "right"),
         ("measured", "right")],
        rows,
    )  # fmt: skip

"""`smolvla-edge heal`: a bundle whose layers stand in for those that a plan skips."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output
from smolvla_edge.errors import BundleError


def heal(
    source: args.Source,
    bundle: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The directory to make.", show_default=False),
    ],
    plan: Annotated[
        str,
        typer.Option(
            "--plan",
            metavar="PLAN",
            show_default=False,
            help="What is skipped: skip.vision=2+5, skip.vlm=, skip.expert=, and steps= if not the "
            "checkpoint's.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DIR|synthetic",
            show_default=False,
            help="What to learn from: a LeRobotDataset v3.0 folder (extra data), a folder with "
            "observations.json, or synthetic noise.",
        ),
    ],
    observations: Annotated[
        int, typer.Option("--observations", min=1, metavar="N", help="Of --data, to learn from.")
    ] = 256,
    held_out: Annotated[
        int,
        typer.Option(
            "--held-out",
            min=1,
            metavar="N",
            help="More of --data, to measure with: of a dataset from other episodes.",
        ),
    ] = 64,
    steps: Annotated[
        int, typer.Option("--steps", min=1, metavar="N", help="Of training, for each layer.")
    ] = 400,
    batch: Annotated[
        int, typer.Option("--batch", min=1, metavar="N", help="Calls of the layer in each step.")
    ] = 16,
    rate: Annotated[
        float, typer.Option("--rate", min=0.0, metavar="X", help="The largest learning rate.")
    ] = 3e-4,
    seed: args.Seed = 0,
    threads: args.Threads = None,
    rename: args.Rename = None,
    tokenizer: args.TokenizerFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle of that name.")] = False,
    as_json: args.AsJson = False,
) -> None:
    """Train the neighbours of skipped layers to make up for them (extra torch).

    Layer by layer, from observations alone: the layer before a gap learns what used to come out
    after it (of the language model, the layer after the gap). The bundle that comes of it is for
    this plan only, which lies beside it as the preset "healed"; with a plan that computes one of
    the skipped layers it refuses to run. Quantise it afterwards, not before.

    It prints the action error of the plan on held-out observations, before and after. Where
    the second is not clearly lower, the bundle is of no use. A healed policy is another policy:
    play it before you trust it (smolvla-edge eval).

    \b
    Example:
      smolvla-edge heal my_bundle my_shorter_bundle --plan skip.vision=5 --data my_recordings

    \b
    What to do next:
      smolvla-edge eval my_bundle --against-policy my_shorter_bundle --against healed
    """
    from smolvla_edge.compress.heal import heal as make
    from smolvla_edge.compress.observations import find_apart
    from smolvla_edge.presets import resolve_plan
    from smolvla_edge.source import open_source

    started = time.perf_counter()
    if not force and os.path.lexists(bundle):  # said before the work, not after it
        raise BundleError(f"{bundle} exists: choose another name, or pass --force to replace it")
    names = args.pairs(rename, "--rename") or None
    with output.busy(f"reading {source}"):
        opened = open_source(source, rename=names, tokenizer=tokenizer)
    asked = resolve_plan(plan, opened.model.num_steps, opened.presets)
    seen, last = find_apart(opened, data, observations, held_out, seed=seed)
    with output.stages() as report:
        made = make(
            opened, bundle, asked, seen, last, steps=steps, batch=batch, rate=rate, seed=seed,
            threads=threads, progress=report, force=force,
            command="smolvla-edge " + shlex.join(sys.argv[1:]),
        )  # fmt: skip
    result: dict[str, Any] = {
        "bundle": str(bundle),
        "digest": made.bundle.digest,
        "healed": made.bundle.provenance["healed"],
        "seconds": round(time.perf_counter() - started, 1),
    }
    if as_json:
        output.emit_json(result)
        return
    output.print_table(
        "what the neighbours learnt (1: no more than the mean)",
        [("layer", "left"), ("learns", "left"), ("loss before", "right"), ("after", "right")],
        [
            (item.lesson.module, item.lesson.describe(), f"{item.loss_before:.4f}",
             f"{item.loss_after:.4f}")
            for item in made.learnt
        ],
    )  # fmt: skip
    output.print_facts(
        f"bundle {bundle}",
        [
            ("digest", made.bundle.digest),
            ("action error, skipped", f"{made.error_before:.3%} rms of the range"),
            ("action error, healed", f"{made.error_after:.3%}"),
            ("measured on", f"{len(last)} held-out observations, {last.kind}"),
            ("plan", "healed, in presets.json; success is unmeasured"),
            ("time", f"{result['seconds']} s"),
        ],
    )
    if made.error_after >= made.error_before:
        output.warn("healing did not help: try more observations or a lower --rate")
    if seen.kind == "synthetic":
        output.warn("learnt from synthetic noise: good for trying, not for a robot")

"""What each layer does to the actions, what leaving several out costs, and what healing gives back.

    python -m benchmarks.skipping POLICY OUT --data RECORDINGS

Ranks the layers, follows the greedy curve over all parts, over vision alone and over the expert's
layers in single steps, and heals the first one, two and three layers of vision's curve into
OUT/healed-1, -2 and -3 (anew each time). Writes OUT/skipping.json, OUT/skipping.md and
OUT/influence.svg. Needs the extras torch, viz and, for a dataset, data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.conditions import collect
from benchmarks.report import table
from smolvla_edge.cli import output
from smolvla_edge.compress.greedy import CELLS, greedy
from smolvla_edge.compress.heal import heal
from smolvla_edge.compress.observations import find_apart
from smolvla_edge.compress.skip import rank_layers
from smolvla_edge.compress.skip_plots import plot_influence
from smolvla_edge.plan import PARTS, Plan
from smolvla_edge.plan_words import write_words
from smolvla_edge.source import open_source

ROOT = Path(__file__).resolve().parents[1]
CURVES = {"all": PARTS, "vision": ("vision",), "cells": (CELLS,)}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.skipping", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("policy", help="a LeRobot checkpoint folder, or a bundle")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True, help="as of smolvla-edge heal")
    parser.add_argument("--observations", type=int, default=64, help="for ranking and curves")
    parser.add_argument("--greedy", type=int, default=8, help="removals in each curve")
    parser.add_argument("--calibration", type=int, default=256, help="observations to heal with")
    parser.add_argument("--held-out", type=int, default=64, help="observations to judge it on")
    parser.add_argument("--steps", type=int, default=400, help="of healing, for each layer")
    parser.add_argument("--rate", type=float, default=3e-4, help="of healing")
    parser.add_argument("--heal", type=int, default=3, help="vision layers at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    return parser.parse_args(arguments)


def run(o: argparse.Namespace) -> dict[str, Any]:
    source = open_source(o.policy)
    common: dict[str, Any] = {"seed": o.seed, "threads": o.threads}
    ranked, _ = find_apart(source, o.data, o.observations, o.held_out, seed=o.seed)
    ranked = ranked.first(len(ranked))
    with output.stages() as report:
        influence = rank_layers(source, ranked, **common, progress=report)
        curves = {
            name: list(
                greedy(source, ranked, parts, count=o.greedy, **common, progress=report)
            )
            for name, parts in CURVES.items()
        }  # fmt: skip
    about = f"Without each layer: {len(ranked)} observations, {ranked.kind}"
    plot_influence(influence, o.out / "influence.svg", about, curves["all"])
    learn_from, held_out = find_apart(source, o.data, o.calibration, o.held_out, seed=o.seed)
    healed = []
    for number, point in enumerate(curves["vision"][1 : o.heal + 1], 1):
        plan = Plan(steps=source.model.num_steps, skip=point.plan.skip)
        with output.stages() as report:
            made = heal(
                source, o.out / f"healed-{number}", plan, learn_from, held_out, steps=o.steps,
                rate=o.rate, **common, progress=report, force=True,
            )  # fmt: skip
        healed.append({
            "words": write_words(plan, source.model.num_steps),
            "bundle": made.bundle.digest,
            "multiply_adds": point.multiply_adds,
            **made.bundle.provenance["healed"],
        })  # fmt: skip
        print(healed[-1]["words"], f"{made.error_before:.3%} {made.error_after:.3%}", flush=True)
    return {
        "policy": o.policy,
        "conditions": collect(ROOT, "benchmarks.skipping"),
        "influence": influence.to_json(),
        "curves": {name: [p.to_json() for p in curve] for name, curve in curves.items()},
        "healed": healed,
    }


def render(result: Mapping[str, Any]) -> str:
    """Tables of the layers, the curves and the healed bundles; errors are rms of the range."""
    parts = result["influence"]["parts"]
    layers = [
        [part, str(item["layer"]), f"{item['action_error']:.2%}", f"{item['block_influence']:.4f}"]
        for part in PARTS
        for item in parts[part]
    ]
    blocks = [table(["part", "layer", "action error without it", "block influence"], layers)]
    for name, curve in result["curves"].items():
        blocks.append(table([f"without ({name})", "action error", "multiply-adds left",
                             "candidates measured"], _rows(curve)))  # fmt: skip
    whole = result["curves"]["vision"][0]["multiply_adds"]
    healed = [
        [row["words"], f"{row['multiply_adds'] / whole:.1%}", f"{row['action_error_before']:.2%}",
         f"{row['action_error_after']:.2%}"]
        for row in result["healed"]
    ]  # fmt: skip
    header = ["plan", "multiply-adds left", "held out, skipped", "held out, healed"]
    return "\n".join([*blocks, table(header, healed)]) + "\n"


def _rows(curve: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for point in curve:
        name = "nothing" if point["part"] is None else f"{point['part']} {point['layer']}"
        step = "" if point["step"] is None else f", step {point['step']}"
        left = point["multiply_adds"] / curve[0]["multiply_adds"]
        rows.append(
            [name + step, f"{point['action_error']:.2%}", f"{left:.1%}", str(point["measured"])]
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    result = run(options)
    text = render(result)
    output.write_json(options.out / "skipping.json", result)
    (options.out / "skipping.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

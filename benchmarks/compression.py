"""What each recipe saves in bytes and costs in actions, rounded and fitted: table and pictures.

    python -m benchmarks.compression POLICY OUT --data RECORDINGS

Makes a bfloat16 bundle and two bundles of every shipped recipe under OUT/bundles (those that are
there are kept), measures each against the policy in float32 on observations and noises that no
fitting saw, and writes OUT/compression.json, OUT/compression.md, OUT/sizes.svg and, of the recipe
`small` layer by layer, OUT/layers.svg. Needs the extras torch, viz and, for a dataset, data.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.conditions import collect
from benchmarks.report import table
from smolvla_edge.bundle import is_bundle, read_bundle
from smolvla_edge.cli import output
from smolvla_edge.compress.evidence import ActionError, Subject
from smolvla_edge.compress.observations import Observations, find_observations
from smolvla_edge.compress.plots import SizePoint, plot_sensitivity, plot_sizes
from smolvla_edge.compress.quantize import quantize
from smolvla_edge.compress.recipe import RECIPES, Recipe
from smolvla_edge.compress.sensitivity import sensitivity
from smolvla_edge.source import Source, open_source

ROOT = Path(__file__).resolve().parents[1]
BFLOAT16 = Recipe("bfloat16", ())
LAYERS_RECIPE = "small"  # the one with formats of 4 bits in vision too


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compression", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("policy", help="a LeRobot checkpoint folder, or a bundle that was kept")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True, help="as of smolvla-edge quantize")
    parser.add_argument("--calibration", type=int, default=256, help="observations to fit to")
    parser.add_argument("--held-out", type=int, default=300, help="observations to measure on")
    parser.add_argument("--layers", type=int, default=24, help="of them, for each layer alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    return parser.parse_args(arguments)


def make_bundle(
    source: Source, folder: Path, recipe: Recipe, seen: Observations | None, o: argparse.Namespace
) -> tuple[Path, float | None]:
    """-> the bundle, and the seconds that making it took (None when it was there)."""
    if is_bundle(folder):
        return folder, None
    started = time.perf_counter()
    if recipe is BFLOAT16:
        from smolvla_edge.bundle_writer import write_bundle
        from smolvla_edge.checkpoint import read_checkpoint

        write_bundle(read_checkpoint(o.policy), folder, dtype="bfloat16")
    else:
        with output.stages() as report:
            quantize(source, folder, recipe, seen, seed=o.seed, threads=o.threads, progress=report)
    return folder, round(time.perf_counter() - started, 1)


def run(o: argparse.Namespace) -> dict[str, Any]:
    source = open_source(o.policy)
    calibration, held = find_observations(
        source, o.data, o.calibration + o.held_out, seed=o.seed
    ).split(o.held_out)
    # Noises that calibration, which counts from the seed, does not draw.
    chunks = partial(_chunks, held, o.seed + o.calibration)
    exact = chunks(Subject(source, compute="float32", threads=o.threads), "the policy in float32")
    rows = []
    for recipe in (BFLOAT16, *RECIPES.values()):
        for seen in (None,) if recipe is BFLOAT16 else (None, calibration):
            name = recipe.name + ("" if seen is None else ", fitted")
            folder = o.out / "bundles" / name.replace(", ", "-")
            made, seconds = make_bundle(source, folder, recipe, seen, o)
            error = ActionError.between(
                chunks(Subject(open_source(made), threads=o.threads), name), exact
            )
            size = sum(record.nbytes for record in read_bundle(made).files.values())
            rows.append({"name": name, "recipe": recipe.name, "fitted": seen is not None,
                         "bytes": size, "seconds": seconds, "error": error.to_json()})  # fmt: skip
            print(f"{name:20s} {size / 1e6:8.1f} MB  {error.rms_of_range:.3%}", flush=True)
    formats = RECIPES[LAYERS_RECIPE].formats(source.model)
    with output.stages() as report:
        layers = list(
            sensitivity(source, formats, held.first(o.layers), seed=o.seed + o.calibration,
                        threads=o.threads, progress=report)
        )  # fmt: skip
    about = f"{len(held)} held-out observations, {held.kind}"
    points = [SizePoint(r["recipe"], r["bytes"], r["error"]["rms_of_range"], r["fitted"])
              for r in rows]  # fmt: skip
    plot_sizes(points, o.out / "sizes.svg", f"Error against size: {about}")
    few = f"{min(o.layers, len(held))} observations, {held.kind}"
    plot_sensitivity(
        layers, o.out / "layers.svg", f"Each layer alone as codes, recipe {LAYERS_RECIPE}: {few}"
    )
    return {
        "policy": o.policy,
        "conditions": collect(ROOT, "benchmarks.compression"),
        "calibration": calibration.evidence(),
        "held_out": held.evidence(),
        "seed": o.seed,
        "rows": rows,
        "layers": [layer.to_json() for layer in layers],
    }


def _chunks(held: Observations, seed: int, subject: Subject, name: str) -> Any:
    with output.progress(f"measuring {name}", unit_bytes=False) as report:
        return subject.chunks(held, seed, report)


def render(result: Mapping[str, Any]) -> str:
    """A row for each bundle: size, and the error of the actions as shares of their range."""
    lines = []
    for row in result["rows"]:
        error = row["error"]
        moving = [i for i, r in enumerate(error["range"]) if r > 0]
        p95, largest = (
            max(error[k][i] / error["range"][i] for i in moving) for k in ("p95", "max")
        )
        lines.append([row["name"], f"{row['bytes'] / 1e6:.1f} MB", f"{error['rms_of_range']:.3%}",
                      f"{p95:.2%}", f"{largest:.1%}"])  # fmt: skip
    header = ["bundle", "size", "rms of the range", "p95, worst action", "largest, worst action"]
    return table(header, lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    (options.out / "bundles").mkdir(parents=True, exist_ok=True)
    result = run(options)
    (options.out / "compression.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "compression.md").write_text(render(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

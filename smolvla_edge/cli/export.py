"""`smolvla-edge export`: a policy becomes ONNX graphs that were held to it."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output
from smolvla_edge.errors import ExportError, VerificationError
from smolvla_edge.onnx_folder import EXPORT_FOLDER
from smolvla_edge.onnx_manifest import FORMS, Manifest
from smolvla_edge.presets import EXACT

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


class Format(str, Enum):
    """What can be made."""

    onnx = "onnx"


class Letterbox(str, Enum):
    """Where frames are resized: in the graph `policy`, or before it."""

    inside = "inside"
    outside = "outside"


def export(
    source: args.Source,
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT",
            help=f"The folder to make; of a bundle BUNDLE/{EXPORT_FOLDER} when not given.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[Format, typer.Option(help="What to make.")] = Format.onnx,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="NAME",
            help="as-stored: a bundle's integer weights as they are, else float32. float32, "
            "float16: of what the integers stand for. int8, int4: as-stored, and refused if the "
            "bundle has no such weights.",
        ),
    ] = "as-stored",
    form: Annotated[
        str,
        typer.Option(
            "--form",
            metavar="NAME",
            help=f"Of products with integer weights: {', '.join(FORMS)}. qdq is standard ONNX, "
            "which runtimes fuse while loading; matmulnbits is what ONNX Runtime makes of it. "
            "integer rounds the rows that meet 8-bit weights too, as the native backend does: "
            "lossy, and the fastest in ONNX Runtime.",
        ),
    ] = "qdq",
    accuracy_level: Annotated[
        int,
        typer.Option(
            "--accuracy-level",
            metavar="0|4",
            help="Of --form matmulnbits. 4: rows are rounded to int8 before they meet integer "
            "weights, faster and lossy. Of qdq each session says it.",
        ),
    ] = 0,
    plan: Annotated[
        str,
        typer.Option(
            "--plan",
            metavar="PLAN",
            help='exact, a preset beside the bundle, a .json file, or words: "steps=4,skip.vlm=14".'
            " Layers are left out of the graphs; steps are what holds when a caller gives none.",
        ),
    ] = EXACT,
    custom_ops: Annotated[
        bool,
        typer.Option(
            "--custom-ops/--no-custom-ops",
            help="Nodes that this package's library of operators runs; without it, any runtime "
            "runs the standard ONNX inside them.",
        ),
    ] = True,
    letterbox: Annotated[
        Letterbox,
        typer.Option(
            help="inside: `policy` takes frames of any size. outside: letterboxed pixels."
        ),
    ] = Letterbox.inside,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="NAME",
            help="onnxruntime, or tensorrt: graphs in float16 of a settled plan, without `policy`, "
            "for TensorRT 10 to build engines of (docs/jetson.md).",
        ),
    ] = "onnxruntime",
    frame: Annotated[
        str | None,
        typer.Option(
            "--frame",
            metavar="HxW",
            show_default=False,
            help="Of a policy that does not resize: height and width of every frame.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Hold the graphs to the native backend, audit them, and write VERIFICATION.json "
            "and CARD.md. What fails is not kept.",
        ),
    ] = True,
    observations: Annotated[
        int,
        typer.Option("--observations", min=1, metavar="N", help="To verify with; 300 for a claim."),
    ] = 4,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DIR|synthetic",
            help="What to verify with: a LeRobotDataset v3.0 folder (extra data), a folder with "
            "observations.json, or synthetic noise.",
        ),
    ] = "synthetic",
    seed: args.Seed = 0,
    threads: args.Threads = None,
    rename: args.Rename = None,
    tokenizer: args.TokenizerFile = None,
    stats: args.Stats = None,
    revision: args.Revision = None,
    allow_unnormalized: args.AllowUnnormalized = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder of that name.")] = False,
    as_json: args.AsJson = False,
) -> None:
    """Make ONNX graphs that run wherever ONNX Runtime does.

    The folder holds the graphs vision, prefix and flow, and policy, which is all of them in one:
    frames, state and token ids in, actions in robot units out. Normalisation is inside; steps and
    noise are inputs. A bundle's integer weights are exported as they are, not rounded again.

    What was made is then held to this package's native backend, from raw frames to robot units and
    stage by stage, and audited: integer weights are the bundle's own, and no float copy of one is
    left. The folder appears under its name when all of it is within its bounds. Needs the extra
    export (pip install 'smolvla-edge[export]').

    \b
    Examples:
      smolvla-edge export my_bundle                      my_bundle/onnx
      smolvla-edge export my_small_bundle out --precision int4 \\
          --data my_recordings --observations 300
      smolvla-edge export my_policy out --letterbox outside --no-custom-ops

    \b
    What to do next:
      smolvla-edge run my_bundle --backend onnx ...      without torch
      less my_bundle/onnx/CARD.md

    \b
    Exit code 1 when it did not pass: nothing is kept. Read next: docs/onnx.md
    """
    started = time.perf_counter()
    size = None if frame is None else _size(frame)
    out = _target(source, out)
    if accuracy_level not in (0, 4) or (accuracy_level and form != "matmulnbits"):
        raise typer.BadParameter(
            "--accuracy-level: expected 0, or 4 with --form matmulnbits, got "
            f"{accuracy_level} with {form}"
        )
    if not force and os.path.lexists(out):  # said before the work, not after it
        raise ExportError(f"{out} exists: choose another name, or pass --force to replace it")
    from smolvla_edge.export.extras import require_extra

    require_extra()
    from smolvla_edge.export.command import run_export
    from smolvla_edge.export.exporter import Form, Options

    chosen = Form(form, custom_ops, accuracy_level)
    options = Options(precision, chosen, letterbox is Letterbox.inside, size, target)
    opening = {
        "rename": args.pairs(rename, "--rename") or None,
        "tokenizer": tokenizer,
        "stats": stats,
        "allow_unnormalized": allow_unnormalized,
        "revision": revision,
    }
    with output.stages() as report:
        try:
            out, made = run_export(
                source,
                out,
                options,
                plan=plan,
                verify=verify,
                data=data,
                observations=observations,
                seed=seed,
                threads=threads,
                opening=opening,
                progress=report,
                command="smolvla-edge " + shlex.join(sys.argv[1:]),
                force=force,
            )
        except VerificationError as failure:
            output.error(str(failure))
            raise typer.Exit(output.FAILED) from None
    found = json.loads((out / "VERIFICATION.json").read_text("utf-8")) if verify else None
    seconds = round(time.perf_counter() - started, 1)
    if as_json:
        output.emit_json(_result(out, made, found, seconds))
    else:
        _print(out, made, found, seconds)
    if found is None:
        output.warn("not verified, as --no-verify asked")
    elif data == "synthetic" and target == "onnxruntime":
        output.note("verified on made-up observations: --data DIR --observations 300 says more")


def _size(text: str) -> tuple[int, int]:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"--frame: expected HEIGHTxWIDTH, as 256x256, got {text!r}")
    return int(found[1]), int(found[2])


def _target(source: str, out: Path | None) -> Path:
    from smolvla_edge.bundle import is_bundle

    if out is not None:
        return out
    if not is_bundle(source):
        raise typer.BadParameter(f"OUT is missing: {source} is no bundle that could hold it")
    return Path(source) / EXPORT_FOLDER


def _result(
    out: Path, made: Manifest, found: dict[str, Any] | None, seconds: float
) -> dict[str, Any]:
    return {
        "folder": out,
        "precision": made.precision,
        "form": made.form,
        "target": made.target,
        "custom_ops": made.custom_ops,
        "plan": made.plan.to_json(),
        "graphs": {
            name: {"file": graph.file, "nodes": graph.nodes} for name, graph in made.graphs.items()
        },
        "files": {name: record.nbytes for name, record in made.files.items()},
        "bytes": sum(record.nbytes for record in made.files.values()),
        "seconds": seconds,
        "verification": None
        if found is None
        else {name: value for name, value in found.items() if name != "audit"},
    }


def _print(out: Path, made: Manifest, found: dict[str, Any] | None, seconds: float) -> None:
    size = sum(record.nbytes for record in made.files.values())
    output.print_facts(
        f"ONNX export {out}",
        [
            ("precision", f"{made.precision}, {made.form}, opset {made.opset}"),
            ("our operators", "yes, with standard ONNX inside" if made.custom_ops else "no"),
            ("size", output.megabytes(size)),
            ("nodes", ", ".join(f"{name} {g.nodes}" for name, g in made.graphs.items())),
            ("time", f"{seconds} s"),
            ("next", _next(out, made, found is not None)),
        ],
    )  # fmt: skip
    if found is None:
        return
    reference = "the native backend" if made.target == "onnxruntime" else found["reference"]
    output.print_table(
        f"standard ONNX against {reference}, {found['observations']['count']} observations",
        [("stage", "left"), ("error", "right"), ("allowed", "right"), ("SQNR dB", "right")],
        (
            (
                row["stage"],
                f"{row['relative']:.1e}",
                _allowed(row),
                "-" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}",
            )
            for row in found["stages"]
        ),
    )
    if made.target != "onnxruntime":
        output.say("PASSED, as far as a machine without TensorRT can say", style="bold")
        return
    ways = {
        "standard ONNX": found,
        "our operators": found["custom_operators"],
        "accuracy_level 4": found["accuracy_level_4"],
        "the bundle, native": found["bundle_native"],
    }
    output.print_table(
        "actions against the same reference, rms in percent of their range",
        [("way", "left"), ("error", "right")],
        (
            (name, f"{100 * way['action_error']['rms_of_range']:.2g} %")
            for name, way in ways.items()
            if way is not None
        ),
    )
    output.say("PASSED", style="bold")


def _next(out: Path, made: Manifest, verified: bool) -> str:
    if made.target != "onnxruntime":
        return f"trtexec on the device: {out / 'CARD.md' if verified else 'docs/jetson.md'}"
    python = f"smolvla_edge.load({str(out)!r})"
    return f"{python}, or the lines in {out / 'CARD.md'}" if verified else python


def _allowed(row: dict[str, Any]) -> str:
    if row["bound"] is not None:
        return f"{row['bound']:.1e}"
    return "-" if row["floor_db"] is None else f"{row['floor_db']:g} dB"

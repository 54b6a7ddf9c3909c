"""`smolvla-edge run`: one observation from files, one chunk of actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output
from smolvla_edge.cli.loading import load_policy
from smolvla_edge.plan import SOLVERS, Plan
from smolvla_edge.plan_words import write_words
from smolvla_edge.presets import EXACT

if TYPE_CHECKING:
    from smolvla_edge.chunk import ActionChunk
    from smolvla_edge.policy import Policy


def run(
    path: args.Source,
    image: args.Images = None,
    state: args.State = None,
    task: args.Task = None,
    seed: args.Seed = 0,
    plan: Annotated[
        str,
        typer.Option(
            "--plan",
            metavar="PLAN",
            help='exact, a preset beside the bundle, a .json file, or words: "steps=4,stop=0.01".',
        ),
    ] = "exact",
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="auto, native (C++), torch (extra torch) or onnx (extra onnxruntime; what "
            "export made of a bundle).",
        ),
    ] = "auto",
    device: args.Device = "auto",
    threads: args.Threads = None,
    rename: args.Rename = None,
    tokenizer: args.TokenizerFile = None,
    stats: args.Stats = None,
    revision: args.Revision = None,
    allow_unnormalized: args.AllowUnnormalized = False,
    allow_missing_cameras: args.AllowMissing = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw the chunk (.png, .svg or .pdf; extra viz).",
            show_default=False,
        ),
    ] = None,
    packed_cache: args.PackedCache = False,
    as_json: args.AsJson = False,
) -> None:
    """One observation in, one chunk of actions out.

    Loads a LeRobot checkpoint, a bundle or an export folder, checks that the cameras, the state and
    the task are what the policy was trained with, and prints the actions in robot units, the time
    of every stage and what was computed by what. The same seed and input give the same actions.

    \b
    Example:
      smolvla-edge run my_policy \\
          --image observation.images.top=top.png \\
          --image observation.images.wrist=wrist.png \\
          --state 0.1,-0.4,0.9,0,0,0.2 --task "pick up the red cube"
      smolvla-edge run my_bundle --image ... --state @state.json --task "..." \\
          --json > chunk.json

    \b
    What names does my policy want?   smolvla-edge inspect my_policy
    In a program:  smolvla_edge.load("my_bundle").predict(images, state, task)
    """
    names = args.pairs(rename, "--rename")
    if not image or state is None or task is None:
        missing = [
            option
            for option, value in (("--image", image), ("--state", state), ("--task", task))
            if not value
        ]
        raise typer.BadParameter(
            f"{', '.join(missing)} missing: a policy needs its cameras, its state and a task. "
            f"'smolvla-edge inspect {path}' lists them"
        )
    values = args.parse_state(state)
    if plot is not None:
        from smolvla_edge.plot import check_plot_path, require_matplotlib

        check_plot_path(plot)
        require_matplotlib()
    frames = args.frames(image)
    policy = load_policy(
        path,
        plan=plan,
        rename=names or None,
        tokenizer=tokenizer,
        stats=stats,
        allow_unnormalized=allow_unnormalized,
        allow_missing_cameras=allow_missing_cameras,
        backend=backend,
        device=device,
        threads=threads,
        revision=revision,
        packed_cache=packed_cache,
    )
    with output.busy("predicting"):
        chunk = policy.predict(frames, values, task, seed=seed)
    if plot is not None:
        from smolvla_edge.plot import plot_chunk

        executed = policy.contract.n_action_steps
        title = f"{Path(path).name}: {task}"
        plot_chunk(chunk.actions, plot, title=title, executed=executed, unit=_unit(chunk))
    if as_json:
        output.emit_json(chunk_json(chunk))
    else:
        _print(policy, chunk, task)
    for flag in chunk.flags:
        output.warn(f"flag: {flag}")
    if plot is not None:
        output.note(f"plot written to {plot}")


def chunk_json(chunk: ActionChunk) -> dict[str, object]:
    """What --json prints of a chunk."""
    return {
        "actions": chunk.actions,
        "normalized": chunk.normalized,
        "timings_ms": dict(chunk.timings),
        "provenance": dict(chunk.provenance),
        "flags": list(chunk.flags),
    }


def _print(policy: Policy, chunk: ActionChunk, task: str) -> None:
    output.print_actions(chunk.actions, _unit(chunk))
    output.print_timings({"this call": chunk.timings})
    output.print_facts("computed", [("task", repr(task)), *provenance_facts(chunk.provenance)])
    flags = f"{len(chunk.flags)} (see the lines after this)" if chunk.flags else "none"
    output.say(f"flags: {flags}")


def _unit(chunk: ActionChunk) -> str:
    unnormalized = "action" in chunk.provenance["unnormalized"]
    return "model units, NOT robot units" if unnormalized else "robot units"


def provenance_facts(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A chunk's provenance in lines for a person."""
    facts = dict(provenance)
    named = ("backend", "device", "isa", "device_name")
    where = [str(facts[name]) for name in named if facts.get(name)]
    if "sm" in facts:
        where.append(f"compute capability {facts['sm'] / 10:.1f}")
    if "threads" in facts:
        where.append(f"{facts['threads']} threads")
    exact = "exact" if facts["exact"] else "not exact"
    made = Plan.from_json(facts["plan"])
    rest = write_words(replace(made, solver=SOLVERS[0]), made.steps)
    more = "" if rest == EXACT else f", {rest}"
    precision = "; ".join(
        f"{part} {' + '.join(f'{count} {dtype}' for dtype, count in counts.items())}"
        for part, counts in facts["precision"].items()
    )
    lines = [
        ("by", ", ".join(where)),
        ("plan", f"{exact}: {made.steps} {made.solver} steps{more}"),
        ("weights", precision),
        ("arithmetic", facts["compute"]),
        ("source", facts["source"]),
        ("bundle", facts["bundle"] or "no bundle: a checkpoint read directly"),
        *([("packed cache", facts["packed_cache"])] if "packed_cache" in facts else []),
        *([("ONNX Runtime", _runtime(facts))] if "onnxruntime" in facts else []),
        ("seed", str(facts["seed"])),
        ("cameras", ", ".join(facts["cameras"])),
    ]
    if facts["unnormalized"]:
        lines.append(("NOT NORMALISED", ", ".join(facts["unnormalized"])))
    return lines


def _runtime(facts: Mapping[str, Any]) -> str:
    used = dict.fromkeys(name for names in facts["providers"].values() for name in names)
    library = "with" if "custom_ops" in facts else "without"
    return (
        f"{facts['onnxruntime']}, {', '.join(used)}, {library} our operators, accuracy level "
        f"{facts['accuracy_level']}"
    )

"""`smolvla-edge demo`: a trained policy at work, with nothing to download."""

from __future__ import annotations

from enum import Enum
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output
from smolvla_edge.cli.demo_speed import run_speed
from smolvla_edge.errors import MissingExtraError, SimulatorError
from smolvla_edge.version import __version__

GIF, PAGE = "demo.gif", "demo.html"


class Size(str, Enum):
    full = "full"
    tiny = "tiny"


def shipped_policy() -> Path:
    """The policy that comes with the package: a LeRobot checkpoint folder."""
    return Path(str(files("smolvla_edge") / "assets" / "demo_policy"))


def demo(
    task: Annotated[
        str, typer.Option("--task", metavar="NAME", help="One of the policy's ten tasks.")
    ] = "button-press",
    instruction: Annotated[
        str | None,
        typer.Option(
            "--instruction",
            metavar="TEXT",
            show_default=False,
            help="Other words for it, or for another task: does it listen?",
        ),
    ] = None,
    seed: args.Seed = 0,
    episodes: Annotated[
        int, typer.Option("--episodes", min=1, metavar="N", help="Seeds from --seed on.")
    ] = 1,
    plan: Annotated[
        str,
        typer.Option("--plan", metavar="PLAN", help='exact, a .json file, or words: "steps=4".'),
    ] = "exact",
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the film and the page are written.")
    ] = Path("."),
    size: Annotated[
        Size | None,
        typer.Option(
            "--size",
            show_default=False,
            help="No simulator: one call of SmolVLA's own size (full: 450 M parameters, untrained, "
            "907 MB made once in your cache) or of a tiny one, on photographs, timed.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            show_default=False,
            help="With --size: where to draw the chunk, actions.png unless said (extra viz).",
        ),
    ] = None,
    device: args.Device = "auto",
    threads: args.Threads = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            metavar="DIR",
            show_default=False,
            help="With --size: make the checkpoint here, or use the one that is here.",
        ),
    ] = None,
    packed_cache: args.PackedCache = False,
    as_json: args.AsJson = False,
) -> None:
    """A trained policy closes the loop in a simulator: try this first.

    A small policy of SmolVLA's architecture (5.2 M parameters, it comes with the package) sees
    Meta-World through a camera, is told what to do in words, and moves the arm: live progress,
    then whether it succeeded, what each stage cost, and whether it keeps up with the robot; a film
    in demo.gif and a page with plans against motion in demo.html. Needs the extra sim; without it
    (or without EGL) the policy runs on frames that were recorded, and says so.

    \b
    Examples:
      smolvla-edge demo
      smolvla-edge demo --task drawer-open --seed 3
      smolvla-edge demo --task faucet-open --instruction "close the faucet"
      smolvla-edge demo --size full          speed at SmolVLA's own size

    \b
    What to do next, with a policy of your own:
      smolvla-edge inspect CHECKPOINT
      smolvla-edge convert CHECKPOINT BUNDLE
    """
    if size is not None:
        run_speed(
            size.value, plot=plot, seed=seed, device=device, threads=threads, keep=keep,
            packed_cache=packed_cache, as_json=as_json,
        )  # fmt: skip
        return
    from smolvla_edge.cli.demo_episode import run_episodes, run_recorded
    from smolvla_edge.eval.metaworld import require_simulator
    from smolvla_edge.eval.tasks import find_tasks

    (chosen,) = find_tasks(task)[:1]
    output.note(f"smolvla-edge {__version__} demo")
    try:
        require_simulator()
    except (MissingExtraError, SimulatorError) as missing:
        output.warn(str(missing))
        result: dict[str, Any] = run_recorded(shipped_policy(), plan, device, threads, as_json)
    else:
        result = run_episodes(
            shipped_policy(), chosen, instruction, seed, episodes, plan, device, threads, out,
            as_json,
        )  # fmt: skip
    if as_json:
        output.emit_json(result)

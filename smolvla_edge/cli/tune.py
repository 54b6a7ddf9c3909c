"""`smolvla-edge tune`: a search for the fastest plan whose actions stay close enough."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output
from smolvla_edge.errors import InputError

if TYPE_CHECKING:
    from smolvla_edge.tune.played import Played
    from smolvla_edge.tune.tuning import Tuned

_DEFAULT_BUDGET = "action_error=1%"


def tune(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE...",
            show_default=False,
            help="One bundle, or several precisions of one policy, the most exact first.",
        ),
    ],
    frames: Annotated[
        Path,
        typer.Option(
            "--frames",
            metavar="DIR",
            show_default=False,
            help="A LeRobotDataset v3.0 folder (extra data): your robot at its work.",
        ),
    ],
    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            metavar="BOUND",
            show_default=False,
            help="action_error=1%: the fastest plan within it (the default). latency=200ms: the "
            "least error with 9 of 10 calls within it. Repeatable, one of each.",
        ),
    ] = None,
    trials: Annotated[
        int,
        typer.Option(
            "--trials", min=1, metavar="N", help="Plans of each bundle; whole batches of 16."
        ),
    ] = 96,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="KNOBS",
            show_default=False,
            help="Turn these alone: some of steps, solver, stop, cache, skip (or skip.vision, "
            "skip.vlm, skip.expert), with commas between.",
        ),
    ] = None,
    streams: Annotated[
        int,
        typer.Option(
            "--streams", min=2, metavar="N", help="Recorded episodes to use; a quarter held out."
        ),
    ] = 24,
    calls: Annotated[
        int, typer.Option("--calls", min=1, metavar="N", help="Timed calls of each finalist.")
    ] = 60,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="BUNDLE",
            show_default=False,
            help="Whose float32 actions are the exact ones; the first BUNDLE unless said.",
        ),
    ] = None,
    env: Annotated[
        args.Environment | None,
        typer.Option(
            "--env", show_default=False, help="Also play what was chosen here (extra sim)."
        ),
    ] = None,
    episodes: Annotated[
        int,
        typer.Option("--episodes", min=1, metavar="N", help="With --env: states of each task."),
    ] = 20,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Of the preset that is written.")
    ] = "fast",
    write: Annotated[
        bool,
        typer.Option("--write/--no-write", help="Keep the chosen plan as a preset of its bundle."),
    ] = True,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="FILE|URL",
            show_default=False,
            help="Where trials are kept: a journal file, sqlite:///FILE or a database's URL. "
            "BUNDLE.tune.journal unless said.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            metavar="N",
            show_default=False,
            help="Processes that search, each with one thread and the policy in memory; as many "
            "as CPUs unless said.",
        ),
    ] = None,
    threads: args.Threads = None,
    seed: args.Seed = 0,
    rename: args.Rename = None,
    report_file: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE", show_default=False, help="Also an HTML page of pictures."
        ),
    ] = None,
    as_json: args.AsJson = False,
) -> None:
    """Find a faster plan for your policy, your recordings and this machine.

    A plan says what is left out (docs/plans.md). The search tries many on recorded frames, taken
    as the robot would see them: every n-th frame of an episode where n actions of a chunk are
    executed. It is steered by the error of those actions against the exact policy in float32, and
    by the work that a plan does, which is counted: the same seed gives the same trials on any
    machine with any number of workers. The best are then timed here, one call of each in turn, and
    their error is measured on episodes that the search did not see. What fits the budget becomes
    a preset beside its bundle, with all that is known of it.

    Interrupted, the same command goes on where it was. Several machines may work at one database
    (--storage postgresql://...): trials are then not reproducible.

    An action error is no success rate. --env plays the chosen plan and its two neighbours in the
    simulator, pair by pair with the exact plan; nothing says more about your robot than your robot.

    \b
    Examples:
      smolvla-edge tune my_bundle --frames my_recordings
      smolvla-edge tune my_bundle my_int8 --frames my_recordings --budget latency=200ms
      smolvla-edge tune my_bundle --frames my_recordings --only steps,cache --report tune.html

    \b
    What to do next:
      smolvla-edge run my_bundle --plan fast ...
    Exit codes: 0 done, 1 nothing fits the budget (nothing is written), 2 refused.
    """
    from smolvla_edge.presets import EXACT, Preset, write_preset
    from smolvla_edge.tune.evidence import preset_evidence, result_json
    from smolvla_edge.tune.front import Budget
    from smolvla_edge.tune.played import play
    from smolvla_edge.tune.storage import default_storage, is_shared, need_optuna
    from smolvla_edge.tune.tuning import Request
    from smolvla_edge.tune.tuning import tune as search

    need_optuna()
    if name == EXACT:
        raise InputError("--name: 'exact' is the reference and cannot be a preset's name")
    if write:
        _check_writable(bundles)
    if report_file is not None:
        _check_report(report_file)
    if env is not None:
        from smolvla_edge.eval.metaworld import require_simulator

        require_simulator()
    place = storage or str(default_storage(bundles[0]))
    count = workers or len(os.sched_getaffinity(0))
    request = Request(
        bundles=tuple(bundles),
        frames=frames,
        storage=place,
        budget=Budget.parse(budget or [_DEFAULT_BUDGET]),
        trials=trials,
        streams=streams,
        calls=calls,
        seed=seed,
        workers=count,
        threads=threads,
        reference=reference,
        only=None if only is None else tuple(word.strip() for word in only.split(",")),
        rename=args.pairs(rename, "--rename") or None,
    )
    played: list[Played] = []
    with output.stages() as report:
        found = search(request, report)
        if env is not None and found.choice.fits:
            folder = default_storage(bundles[0]) if is_shared(place) else _file_of(place)
            played = play(found, episodes, folder.with_suffix(".episodes"), count, report)
    result: dict[str, Any] = {
        **result_json(found),
        "closed_loop": [one.to_json() for one in played],
        "preset": None,
    }
    if write and found.choice.fits:
        closed_loop = played[0].to_json() if played else None
        preset = Preset(name, found.chosen.plan, preset_evidence(found, found.chosen, closed_loop))
        bundle = found.sources[found.chosen.candidate.source].bundle
        if bundle is not None:
            result["preset"] = {
                "name": name, "file": str(write_preset(bundle.path, bundle.digest, preset)),
            }  # fmt: skip
    if report_file is not None:
        from smolvla_edge.tune.report import render

        with output.busy("drawing the report"):
            report_file.write_text(render(found, played), encoding="utf-8")
        output.note(f"wrote {report_file}")
    if as_json:
        output.emit_json(result)
    else:
        _print(found, played, result)
    if not found.choice.fits:
        raise typer.Exit(output.FAILED)


def _check_writable(bundles: Sequence[str]) -> None:
    """Said before the search, not after it."""
    from smolvla_edge.bundle import is_bundle

    for path in bundles:
        if not is_bundle(path):
            raise InputError(
                f"{path}: expected a bundle, beside which a preset can be kept. Convert it "
                "(smolvla-edge convert), or search with --no-write"
            )
        if not os.access(path, os.W_OK):
            raise InputError(f"{path} cannot be written to; copy the bundle, or use --no-write")


def _check_report(file: Path) -> None:
    from smolvla_edge.plot import require_matplotlib

    require_matplotlib()
    if not file.absolute().parent.is_dir() or file.is_dir():
        raise InputError(f"--report: expected a file in a folder that exists, got {file}")


def _file_of(place: str) -> Path:
    return Path(place.removeprefix("sqlite:///")).absolute()


def _print(found: Tuned, played: Sequence[Played], result: dict[str, Any]) -> None:
    from smolvla_edge.tune.front import measured_front

    facts = [
        ("frames", found.streams.describe()),
        ("executed", f"{found.rows} of {found.reference.model.chunk_size} actions of a chunk"),
        ("exact is", f"{found.reference.provenance['source']} in float32"),
        ("trials", " + ".join(str(len(mine)) for mine in found.trials)),
        ("timed with", f"{found.ran['isa']}, threads: {found.ran['threads']}"),
        ("budget", found.request.budget.describe()),
    ]
    output.print_facts("search", facts)
    output.print_facts("space", found.space.describe())
    front = set(measured_front(found.finalists))
    several = len(found.sources) > 1
    rows = []
    for number, one in sorted(
        enumerate(found.finalists), key=lambda item: item[1].latency.median_ms
    ):
        mark = "chosen" if number == found.choice.number and found.choice.fits else ""
        rows.append((
            mark or ("*" if number in front else ""),
            *([Path(found.request.bundles[one.candidate.source]).name] if several else []),
            found.words(one),
            "-" if one.candidate.error is None else f"{one.candidate.error:.2%}",
            f"{one.held_out.rms_of_range:.2%}",
            f"{one.latency.median_ms:.2f}",
            f"{one.latency.p90_ms:.2f}",
            f"{one.speedup:.2f}x",
        ))  # fmt: skip
    columns = [("", "left"), *([("bundle", "left")] if several else []), ("plan", "left"),
               ("searched", "right"), ("held out", "right"), ("median ms", "right"),
               ("p90 ms", "right"), ("speed", "right")]  # fmt: skip
    output.print_table(
        f"finalists (* no other is faster and closer), {found.finalists[0].latency.calls} calls of "
        "each in turn; errors: rms of the actions' range",
        columns,
        rows,
    )
    _print_choice(found, played, result)


def _print_choice(found: Tuned, played: Sequence[Played], result: dict[str, Any]) -> None:
    one = found.chosen
    told = (
        f"{found.words(one)}: {one.speedup:.2f} times as fast as the exact plan, actions "
        f"{one.held_out.rms_of_range:.2%} of their range off (rms; {found.error.rms_of_range:.2%} "
        "on the frames of the search)"
    )
    if not found.choice.fits:
        output.say(f"nothing fits the budget ({found.request.budget.describe()}). Nearest: {told}")
        return
    output.print_table(
        "the chosen plan's error, robot units, held out (and on the frames of the search)",
        [(word, "right") for word in ("action", "mean", "p95", "max", "range")],
        [
            (action, *(f"{here[action]:.3g} ({there[action]:.3g})" for here, there in (
                (one.held_out.mean, found.error.mean), (one.held_out.p95, found.error.p95),
                (one.held_out.largest, found.error.largest),
                (one.held_out.range, found.error.range),
            )))
            for action in range(len(one.held_out.mean))
        ],
    )  # fmt: skip
    output.say(told, style="bold")
    for match in played:
        which = (
            "played"
            if match is played[0]
            else "its neighbour " + found.words(found.finalists[match.number])
        )
        output.say(f"{which}: {match.describe()}")
    if not played:
        output.say("closed loop: unmeasured (--env metaworld plays it)")
    if result["preset"] is not None:
        output.note(f"kept as preset {result['preset']['name']!r} in {result['preset']['file']}")

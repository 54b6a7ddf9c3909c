"""`smolvla-edge eval`: how often a policy solves its tasks, and what a faster setting costs."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolvla_edge.cli import arguments as args
from smolvla_edge.cli import output
from smolvla_edge.cli.eval_recorded import evaluate_recorded, print_recorded
from smolvla_edge.errors import InputError, SimulatorError

if TYPE_CHECKING:
    from smolvla_edge.eval.sides import Side


def evaluate(
    source: args.Source,
    env: Annotated[
        args.Environment, typer.Option("--env", help="The simulator (extra sim).")
    ] = args.Environment.metaworld,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="NAMES",
            help="With commas between; all ten unless said.",
            show_default=False,
        ),
    ] = None,
    episodes: Annotated[
        int, typer.Option("--episodes", min=1, metavar="N", help="Initial states of each task.")
    ] = 50,
    plan: Annotated[
        str,
        typer.Option(
            "--plan",
            metavar="PLAN",
            help='exact, a preset, a .json file, or words: "steps=4,solver=ab2".',
        ),
    ] = "exact",
    n_action_steps: Annotated[
        int | None,
        typer.Option(
            "--n-action-steps",
            min=1,
            metavar="N",
            show_default=False,
            help="Actions executed of each chunk; the checkpoint's own number unless said.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="PLAN",
            show_default=False,
            help='A second plan, on the same episodes; "n_action_steps=4" may be one of its words.',
        ),
    ] = None,
    against_policy: Annotated[
        str | None,
        typer.Option(
            "--against-policy",
            metavar="BUNDLE",
            show_default=False,
            help="A second policy on the same episodes: another precision of the first, say.",
        ),
    ] = None,
    blank: Annotated[
        bool, typer.Option("--blank", help="Show it a grey picture: what do eyes contribute?")
    ] = False,
    instruction: Annotated[
        str | None,
        typer.Option(
            "--instruction",
            metavar="TEXT",
            show_default=False,
            help="Say this in every task, in place of its own words; @other says each task the "
            "words of another (of the one that shares its scene, if any), @lerobot those of "
            "LeRobot's environment.",
        ),
    ] = None,
    first_seed: Annotated[
        int, typer.Option("--first-seed", min=0, metavar="N", help="Of the initial states.")
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            metavar="N",
            show_default=False,
            help="Processes, each with one thread; as many as CPUs unless said.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            show_default=False,
            help="Play on this Ray cluster (host:port, or auto); extra ray.",
        ),
    ] = None,
    size: Annotated[
        str, typer.Option("--size", metavar="WxH", help="Of the camera's picture.")
    ] = "128x128",
    step_limit: Annotated[
        int | None,
        typer.Option(
            "--step-limit",
            min=1,
            metavar="N",
            show_default=False,
            help="An episode's last step; 130 unless said.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            show_default=False,
            help="Keep every episode here; an interrupted evaluation goes on. Writes summary.json.",
        ),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            "--dataset",
            metavar="DIR",
            show_default=False,
            help="No simulator: a LeRobotDataset v3.0 folder; the action error over its frames.",
        ),
    ] = None,
    every: Annotated[
        int, typer.Option("--every", min=1, metavar="N", help="With --dataset: each N-th frame.")
    ] = 10,
    rename: args.Rename = None,
    report_file: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            show_default=False,
            help="Also an HTML page, with films of some episodes.",
        ),
    ] = None,
    as_json: args.AsJson = False,
) -> None:
    """Success rates in a simulator, with intervals; two settings compared pair by pair.

    Each task is played from the same recorded initial states and noises, so a second setting
    (--against, --against-policy) meets exactly the episodes of the first: what differs is the
    setting. Printed are the rate of every task with its 95 % interval (Wilson), the difference
    with its interval (bootstrap over pairs) and McNemar's exact p, and the smallest difference
    that so many episodes could have shown. Latencies are of one thread beside the other workers.

    \b
    Examples:
      smolvla-edge eval my_bundle
      smolvla-edge eval my_bundle --against steps=2 --episodes 100 --out results/steps2
      smolvla-edge eval my_bundle --tasks drawer-open,push --blank
      smolvla-edge eval my_bundle --dataset my_recordings --against steps=4

    \b
    What to do next:
      smolvla-edge eval my_bundle --out results --json > summary.json
    """
    if dataset is not None:
        if tasks is not None or ray is not None or report_file is not None:
            raise InputError("--dataset: expected no --tasks, --ray or --report: nothing is played")
        sides = _sides(source, plan, n_action_steps, against, against_policy, blank, instruction)
        cameras = args.pairs(rename, "--rename")
        found = evaluate_recorded(sides, dataset, episodes, every, cameras, first_seed)
        if out is not None:
            output.write_json(out / "summary.json", found)
        if as_json:
            output.emit_json(found)
        else:
            print_recorded(found)
        return
    from smolvla_edge.eval.metaworld import STEP_LIMIT, require_simulator
    from smolvla_edge.eval.recording import films
    from smolvla_edge.eval.report import render
    from smolvla_edge.eval.runner import Setting
    from smolvla_edge.eval.runner import evaluate as play
    from smolvla_edge.eval.summary import compare, summarize
    from smolvla_edge.eval.tasks import find_tasks

    require_simulator()
    _check_target(report_file)
    chosen = find_tasks(tasks)
    width, height = _size(size)
    setting = Setting(width, height, step_limit or STEP_LIMIT)
    sides = _sides(source, plan, n_action_steps, against, against_policy, blank, instruction)
    jobs = [(t.name, first_seed + i) for t in chosen for i in range(episodes)]
    count = workers or len(os.sched_getaffinity(0))
    cluster = None
    if ray is not None:
        from smolvla_edge.eval.ray_cluster import connect

        cluster, count = connect(ray, workers)
    played, summaries, seconds = [], [], []
    for number, side in enumerate(sides):
        file = None if out is None else out / f"episodes-{number}.jsonl"
        facts = side.facts()
        started = time.perf_counter()
        with output.progress(f"playing {side.describe()}", unit_bytes=False) as report:
            played.append(
                play(side, jobs, setting, workers=count, file=file, progress=report, play=cluster)
            )
        seconds.append(round(time.perf_counter() - started, 1))
        summaries.append({**facts, **summarize(played[-1])})
    result: dict[str, Any] = {
        "environment": env.value,
        "setting": vars(setting),
        "seeds": [first_seed, first_seed + episodes - 1],
        "workers": count,
        "cluster": ray,
        "seconds": seconds,
        "sides": summaries,
        "comparison": compare(*played) if len(played) == 2 else None,
        "command": shlex.join(["smolvla-edge", *sys.argv[1:]]),
    }
    if out is not None:
        output.write_json(out / "summary.json", result)
    if report_file is not None:
        with output.busy("filming episodes"):
            shown = films(sides[0], played[0], setting)
        report_file.write_text(render(result, played, shown), encoding="utf-8")
        output.note(f"wrote {report_file}")
    if as_json:
        output.emit_json(result)
    else:
        _print(result)


def _sides(
    source: str,
    plan: str,
    n_action_steps: int | None,
    against: str | None,
    against_policy: str | None,
    blank: bool,
    instruction: str | None,
) -> list[Side]:
    from smolvla_edge.eval.sides import Side

    sides = [Side(source, plan, n_action_steps, blank, instruction)]
    if against is not None or against_policy is not None:
        words, count = _split(against or plan, n_action_steps)
        sides.append(Side(against_policy or source, words, count, blank, instruction))
    return sides


def _check_target(file: Path | None) -> None:
    if file is not None and (not file.absolute().parent.is_dir() or file.is_dir()):
        raise SimulatorError(f"--report: expected a file in a folder that exists, got {file}")


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise SimulatorError(f"--size: expected WIDTHxHEIGHT (640x480), got {text!r}")
    return int(width), int(height)


def _split(words: str, n_action_steps: int | None) -> tuple[str, int | None]:
    """ "steps=2,n_action_steps=4" -> ("steps=2", 4)."""
    kept = []
    for word in words.split(","):
        name, _, value = word.partition("=")
        if name.strip() != "n_action_steps":
            kept.append(word)
        elif not value.strip().isdigit():
            raise SimulatorError(f"--against: n_action_steps: expected a number, got {value!r}")
        else:
            n_action_steps = int(value)
    return ",".join(kept) or "exact", n_action_steps


def _print(result: Mapping[str, Any]) -> None:
    from smolvla_edge.eval.report import jumps, processes

    sides: Sequence[Mapping[str, Any]] = result["sides"]
    names = ["first", "second"][: len(sides)] if len(sides) == 2 else ["solved"]
    rows = []
    for task in [*sides[0]["tasks"], "mean"]:
        cells = [task]
        for side in sides:
            row = side["all"] if task == "mean" else side["tasks"][task]
            cells.append(
                f"{row['rate']:6.1%}  {row['low']:.0%} to {row['high']:.0%}  "
                f"({row['successes']} of {row['n']})"
            )
        steps = (sides[0]["all"] if task == "mean" else sides[0]["tasks"][task])["mean_steps"]
        rows.append([*cells, "-" if steps is None else f"{steps:.0f}"])
    columns = [("task", "left"), *((name, "left") for name in names), ("steps", "right")]
    output.print_table("success", columns, rows)
    size = "{width}x{height}".format(**result["setting"])
    for name, side in zip(names, sides, strict=True):
        facts = [
            ("policy", side["policy"]),
            ("plan", side["plan"]),
            ("executed", f"{side['n_action_steps']} of {side['horizon']} actions a chunk"),
            ("denoise steps", side["steps"]),
            *_done(side),
            ("picture", "blank" if side["blank"] else size),
            ("told", side["instruction"] or "each task's own words"),
            ("latency", "p50 {p50}, p95 {p95}, p99 {p99} ms a chunk".format(**side["latency_ms"])),
            ("actions", f"{side['actions_per_second']} a second at most; the robot takes "
                        f"{side['control_rate']:.0f}"),
            ("jump between actions", jumps(side["seam_jump"], side["inner_jump"])),
        ]  # fmt: skip
        output.print_facts(name, facts)
    _print_comparison(result["comparison"])
    output.say(
        f"note: {result['environment']}, seeds {result['seeds'][0]} to {result['seeds'][1]}, "
        f"{processes(result['workers'])}, {sum(result['seconds']):.0f} s. A simulator says nothing "
        "about your robot."
    )


def _done(side: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a plan came to, where it is not what it says: evaluations, tokens computed."""
    facts = []
    if side["evaluations"] not in (None, side["steps"]):
        facts.append(("evaluations", f"{side['evaluations']:.2f} of the velocity a chunk"))
    if side["dirty"] is not None:
        facts.append(("dirty", f"{side['dirty']:.1%} of the tokens of a picture computed a chunk"))
    return facts


def _print_comparison(pairs: Mapping[str, Any] | None) -> None:
    from smolvla_edge.eval.report import resolvable

    if pairs is None:
        return
    facts = [
        ("second less first", f"{pairs['difference']:+.1%}, 95 % interval {pairs['low']:+.1%} to "
                              f"{pairs['high']:+.1%}"),
        ("pairs", f"{pairs['pairs']}: both {pairs['both']}, only first {pairs['only_first']}, only "
                  f"second {pairs['only_second']}, neither {pairs['neither']}"),
        ("McNemar, exact", f"p = {pairs['p_value']:.3g}"),
        ("could have shown", resolvable(pairs)),
    ]  # fmt: skip
    output.print_facts("comparison", facts)

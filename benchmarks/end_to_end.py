"""End to end: smolvla_edge and LeRobot on the same frames, noise and weights, in turn.

    python -m benchmarks.end_to_end --cameras 1 2 3
    python -m benchmarks.end_to_end --cameras 1 2 --compile
    python -m benchmarks.end_to_end --cameras 1 2 --recipe balanced small
    python -m benchmarks.end_to_end --config libero --cameras 2

Each engine lives in a process of its own; one computes while the others block. The order within a
round alternates (A B C, then C B A), so that a slow drift of the machine hits all. A sample taken
while other processes used more than `--quiet` of the CPU time is repeated on the spot (at most
`--retries` times a case); the JSON keeps it, the percentiles leave it out. The actions of all
engines are compared in the same run: a speed without them is worth nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ceilings import merge
from benchmarks.conditions import collect, device_name, noise_report
from benchmarks.engines import (
    CONFIGS,
    PRECISIONS,
    RECIPES,
    REFERENCE,
    ROOT,
    Engine,
    choose_engines,
    default_checkpoint,
    describe_checkpoint,
    rivals_of,
    start_workers,
)
from benchmarks.flops import exact_flops, reference_flops
from benchmarks.harness import Worker, WorkerError, close_all, log, timed_run, wait_for_quiet
from benchmarks.inputs import FRAME_SIZES, write_inputs
from benchmarks.report import FORMAT
from benchmarks.store import save
from benchmarks.summary import Sample, action_difference, ratio, summarise, turns

COMPILE_SECONDS = 3600.0  # the first call of a compiled policy takes minutes


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--language", nargs="+", choices=("longest", "max_length"), default=["max_length"],
        help="what LeRobot pads the prompt to: its own length, or all --slots",
    )  # fmt: skip
    parser.add_argument("--slots", type=int, default=48, help="language slots of max_length")
    parser.add_argument("--valid-tokens", type=int, default=12, help="length of the prompt")
    parser.add_argument("--config", choices=CONFIGS, default="base", help="synthetic checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="a LeRobot folder instead")
    parser.add_argument("--frame-size", choices=tuple(FRAME_SIZES), default="640x480")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument(
        "--recipe", nargs="*", choices=RECIPES, default=[], metavar="RECIPE",
        help=f"also ours with integer weights: {', '.join(RECIPES)}",
    )  # fmt: skip
    parser.add_argument("--no-rival", action="store_true", help="ours only")
    parser.add_argument(
        "--compile", nargs="*", choices=PRECISIONS, metavar="PRECISION",
        help="also LeRobot under torch.compile, max-autotune (default: bfloat16)",
    )  # fmt: skip
    parser.add_argument("--backend", choices=("native", "torch"), default="native")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--quiet", type=float, default=0.05, help="CPU share left to others")
    parser.add_argument("--retries", type=int, help="disturbed samples to repeat (as --repeats)")
    parser.add_argument(
        "--patience", type=float, default=20.0, help="seconds to wait for others before a sample"
    )
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    parser.add_argument("--device-name", help="file name in benchmarks/results")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results alone")
    options = parser.parse_args(arguments)
    if min(options.cameras) < 1 or options.repeats < 1 or options.threads < 1:
        parser.error("--cameras, --repeats and --threads: expected 1 or more")
    if not 1 <= options.valid_tokens <= options.slots:
        parser.error(f"--valid-tokens: expected 1 to {options.slots} (--slots)")
    if options.compile is not None:
        options.compile = options.compile or ["bfloat16"]
    if options.retries is None:
        options.retries = options.repeats
    return options


def measure(
    workers: dict[str, Worker], cameras: int, language: str, options: argparse.Namespace
) -> tuple[dict[str, list[Sample]], list[dict[str, Any]]]:
    """Interleaved samples of every engine in one case, and what preparing the case took."""
    request = {"cameras": cameras, "language": language}
    prepared = []
    for name, worker in workers.items():
        answer = worker.ask(timeout=COMPILE_SECONDS, cmd="prepare", **request)
        prepared.append({"engine": name, **request, **answer})
        for _ in range(options.warmup):
            timed_run(worker, **request)
    samples: dict[str, list[Sample]] = {name: [] for name in workers}
    retries = options.retries
    for index in range(options.repeats):
        for name in turns(workers, index):
            while True:
                wait_for_quiet(options.quiet, options.patience)
                sample = timed_run(workers[name], **request)
                samples[name].append(sample)
                disturbed = sample.foreign > options.quiet
                mark = f"   disturbed: others used {sample.foreign:.0%}" if disturbed else ""
                log(f"  {cameras} camera(s) {language:10s} {name:27s} {sample.ms:8.1f} ms{mark}")
                if not disturbed or retries == 0:
                    break
                retries -= 1
    return samples, prepared


def _rounded(counts: dict[str, float]) -> dict[str, float]:
    return {name: round(value / 1e9, 3) for name, value in counts.items()}


def evaluate(
    samples: dict[str, list[Sample]],
    engines: list[Engine],
    cameras: int,
    language: str,
    model: Any,
    options: argparse.Namespace,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(one entry an engine, one ratio for each of ours and a rival of its precision)."""
    slots = options.slots if language == "max_length" else options.valid_tokens
    reference = samples.get(REFERENCE.name)
    entries: dict[str, dict[str, Any]] = {}
    for engine in engines:
        series = samples[engine.name]
        counts = (
            exact_flops(model, cameras, options.valid_tokens)
            if engine.is_ours
            else reference_flops(model, cameras, slots)
        )
        entries[engine.name] = {
            "engine": engine.name,
            "precision": engine.precision,
            "cameras": cameras,
            "language": language,
            "slots": slots,
            **summarise(series, options.quiet),
            "gflop": _rounded(counts),
            "repeatable": all(s.actions == series[0].actions for s in series),
            "action_difference": action_difference(series[0], reference[0]) if reference else None,
        }
    ratios = [
        ratio(entries[engine.name], entries[rival.name])
        for engine in engines
        if engine.is_ours
        for rival in rivals_of(engine, engines)
    ]
    return list(entries.values()), ratios


def run(options: argparse.Namespace) -> dict[str, Any]:
    conditions = collect(ROOT, "benchmarks.end_to_end")
    checkpoint = options.checkpoint or default_checkpoint(options.config, max(*options.cameras, 3))
    model, about_weights = describe_checkpoint(checkpoint)
    engines = choose_engines(
        options.precision, not options.no_rival, options.compile or [], recipes=options.recipe
    )
    workers = start_workers(engines, checkpoint, options.threads, options.backend)
    first_of_ours = workers[engines[0].name]
    results: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    prepared: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory(prefix="smolvla-bench-") as folder:
            inputs = Path(folder) / "inputs.npz"
            write_inputs(
                inputs, model, max(options.cameras), options.frame_size,
                options.slots, options.valid_tokens,
            )  # fmt: skip
            for worker in workers.values():
                worker.ask(cmd="inputs", path=str(inputs))
        bursts = [first_of_ours.ask(cmd="ceiling")["ceilings"]]
        for language in options.language:
            for cameras in options.cameras:
                samples, preparing = measure(workers, cameras, language, options)
                entries, found = evaluate(samples, engines, cameras, language, model, options)
                results += entries
                ratios += found
                prepared += preparing
                bursts.append(first_of_ours.ask(cmd="ceiling")["ceilings"])
    finally:
        close_all(workers)
    noise = noise_report(conditions["load_average_before"][0], conditions["cores"], results)
    return {
        "format": FORMAT,
        "kind": "end_to_end",
        "title": f"End to end on {conditions['cpu']['model']}, {options.threads} threads"
        + ("" if options.checkpoint or options.config == "base" else f", {options.config}"),
        "about": "One chunk of actions from uint8 camera frames, batch 1.",
        "conditions": conditions,
        "settings": {
            "checkpoint": about_weights,
            "input": f"frames {options.frame_size} uint8, a prompt of {options.valid_tokens} "
            f"tokens, {model.num_steps} steps, all {model.chunk_size} actions",
            "threads": options.threads,
            "warm-up": f"{options.warmup} after preparing",
            "quiet limit": options.quiet,
        },
        "engines": {name: worker.ready for name, worker in workers.items()},
        "reference": REFERENCE.name,
        "ceilings": merge(bursts),
        "ceilings_each": bursts,
        "prepared": prepared,
        "results": results,
        "ratios": ratios,
        "noise": noise,
        "quiet": not noise,
    }


def file_name(result: dict[str, Any], options: argparse.Namespace) -> str:
    """One file a device and configuration."""
    name: str = options.device_name or device_name(result["conditions"])
    return name if options.config == "base" else f"{name}-{options.config}"


def main() -> int:
    options = parse()
    try:
        result = run(options)
    except WorkerError as error:
        log(f"error: {error}")
        return 1
    save(result, None if options.no_save else file_name(result, options), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

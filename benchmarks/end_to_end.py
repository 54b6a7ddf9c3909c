"""End to end: smolvla_edge and LeRobot on the same frames, noise and weights, in turn.

    python -m benchmarks.end_to_end --cameras 1 2 3
    python -m benchmarks.end_to_end --cameras 1 2 --compile
    python -m benchmarks.end_to_end --cameras 1 2 --recipe balanced small
    python -m benchmarks.end_to_end --config libero --cameras 2
    python -m benchmarks.end_to_end --device cuda --cameras 1 2 --recipe balanced expert4 --compile

Each engine lives in a process of its own; one computes while the others block. The order within a
round alternates (A B C, then C B A), so that a slow drift of the machine hits all. A sample taken
while other processes used more than `--quiet` of the CPU time is repeated on the spot (at most
`--retries` times a case); the JSON keeps it, the percentiles leave it out. The actions of all
engines are compared in the same run: a speed without them is worth nothing.

On a GPU a turn is a burst of calls, the first of which are not counted (workers/burst.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ceilings import merge
from benchmarks.conditions import collect, device_name, noise_report
from benchmarks.engines import (
    CONFIGS,
    PRECISIONS,
    PRODUCTS,
    RECIPES,
    RIVALS,
    ROOT,
    Engine,
    Start,
    bundle_of,
    choose_engines,
    default_checkpoint,
    describe_checkpoint,
    reference_of,
    rivals_of,
    start_workers,
)
from benchmarks.flops import exact_flops, reference_flops
from benchmarks.harness import Worker, WorkerError, close_all, log, timed_runs, wait_for_quiet
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
    parser.add_argument(
        "--rival", choices=RIVALS, default="lerobot",
        help="reference: our own torch model, where LeRobot cannot be installed",
    )  # fmt: skip
    parser.add_argument("--no-rival", dest="rival", action="store_const", const="none",
                        help="ours only")  # fmt: skip
    parser.add_argument("--rival-python", help="runs LeRobot, instead of its own environment")
    parser.add_argument(
        "--compile", nargs="*", choices=PRECISIONS, metavar="PRECISION",
        help="also the rival under torch.compile, max-autotune (default: bfloat16)",
    )  # fmt: skip
    parser.add_argument("--backend", choices=("native", "torch"), default="native")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--burst", type=int, help="calls in a turn (cpu 1, cuda 20)")
    parser.add_argument("--lead-in", type=int, help="not counted at its beginning (cpu 0, cuda 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--quiet", type=float, default=0.05, help="CPU share left to others")
    parser.add_argument("--retries", type=int, help="disturbed samples to repeat (as --repeats)")
    parser.add_argument(
        "--patience", type=float, default=20.0, help="seconds to wait for others before a sample"
    )
    parser.add_argument(
        "--prepare-only", action="store_true", help="make the checkpoint and bundles, time nothing"
    )
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    parser.add_argument("--device-name", help="file name in benchmarks/results")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results alone")
    options = parser.parse_args(arguments)
    if min(options.cameras) < 1 or options.repeats < 1 or options.threads < 1:
        parser.error("--cameras, --repeats and --threads: expected 1 or more")
    if not 1 <= options.valid_tokens <= options.slots:
        parser.error(f"--valid-tokens: expected 1 to {options.slots} (--slots)")
    on_gpu = options.device == "cuda"
    options.burst = options.burst or (20 if on_gpu else 1)
    options.lead_in = (5 if on_gpu else 0) if options.lead_in is None else options.lead_in
    if options.burst < 1 or options.lead_in < 0:
        parser.error("--burst: expected 1 or more; --lead-in: 0 or more")
    if options.compile is not None:
        options.compile = options.compile or ["bfloat16"]
    if options.retries is None:
        options.retries = options.repeats
    return options


def measure(
    workers: dict[str, Worker], cameras: int, language: str, options: argparse.Namespace
) -> tuple[dict[str, list[Sample]], list[dict[str, Any]]]:
    """Interleaved samples of every engine in one case, and what preparing the case took.

    A rival that fails while it prepares is left out, here and from then on, and says why.
    """
    request = {"cameras": cameras, "language": language}
    prepared = []
    for name, worker in list(workers.items()):
        log(f"preparing {name}")
        try:
            answer = worker.ask(timeout=COMPILE_SECONDS, cmd="prepare", **request)
            for _ in range(options.warmup):
                worker.ask(cmd="run", **request)
        except WorkerError as error:
            if name.startswith(PRODUCTS["ours"]):
                raise
            log(f"error: {error}")
            answer = {"failed": str(error)[:1000]}
            workers.pop(name).close()
        prepared.append({"engine": name, **request, **answer})
    samples: dict[str, list[Sample]] = {name: [] for name in workers}
    retries = options.retries
    for index in range(options.repeats):
        for name in turns(workers, index):
            while True:
                wait_for_quiet(options.quiet, options.patience)
                turn = timed_runs(workers[name], options.burst, options.lead_in, **request)
                samples[name] += turn
                foreign, ms = turn[0].foreign, sorted(s.ms for s in turn)[len(turn) // 2]
                disturbed = foreign > options.quiet
                mark = f"   disturbed: others used {foreign:.0%}" if disturbed else ""
                log(f"  {cameras} camera(s) {language:10s} {name:36s} {ms:8.2f} ms{mark}")
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
    engines = [engine for engine in engines if engine.name in samples]
    found = reference_of(engines)
    reference = samples[found.name] if found else None
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
            "device_mib": series[-1].device_mib,
            "allocated_mib": series[-1].allocated_mib,
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
    checkpoint = checkpoint_of(options)
    model, about_weights = describe_checkpoint(checkpoint)
    engines = choose_engines(
        options.precision, options.rival, options.compile or [], recipes=options.recipe
    )
    gpu = describe_gpu(options.no_save) if options.device == "cuda" else None
    bursts = [measured_ceilings()] if gpu else []
    start = Start(options.threads, options.backend, options.device, options.rival_python)
    workers = start_workers(engines, checkpoint, start)
    ready = {name: worker.ready for name, worker in workers.items()}
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
        if not gpu:
            bursts.append(first_of_ours.ask(cmd="ceiling")["ceilings"])
        for language in options.language:
            for cameras in options.cameras:
                samples, preparing = measure(workers, cameras, language, options)
                entries, found = evaluate(samples, engines, cameras, language, model, options)
                results += entries
                ratios += found
                prepared += preparing
                if not gpu:
                    bursts.append(first_of_ours.ask(cmd="ceiling")["ceilings"])
    finally:
        close_all(workers)
    noise = noise_report(conditions["load_average_before"][0], conditions["cores"], results)
    where = gpu["name"] if gpu else f"{conditions['cpu']['model']}, {options.threads} threads"
    about = "One chunk of actions from uint8 camera frames, batch 1."
    if options.rival == "reference":
        about += (
            " LeRobot is not in this run: the rival is this project's own torch model, which "
            "computes what LeRobot computes, eager and compiled."
        )
    about += "".join(f" **{p['failed']}: not in this run.**" for p in prepared if "failed" in p)
    reference = reference_of([engine for engine in engines if engine.name in workers])
    return {
        "format": FORMAT,
        "kind": "end_to_end",
        "title": f"End to end on {where}"
        + ("" if options.checkpoint or options.config == "base" else f", {options.config}"),
        "about": about,
        "conditions": conditions,
        "gpu": gpu,
        "settings": {
            "checkpoint": about_weights,
            "input": f"frames {options.frame_size} uint8, a prompt of {options.valid_tokens} "
            f"tokens, {model.num_steps} steps, all {model.chunk_size} actions",
            "threads": options.threads,
            "warm-up": f"{options.warmup} after preparing",
            "turn": f"{options.burst} calls, after {options.lead_in} that are not counted",
            "quiet limit": options.quiet,
        },
        "engines": ready,
        "reference": reference.name if reference else None,
        "ceilings": merge(bursts),
        "ceilings_each": bursts,
        "prepared": prepared,
        "results": results,
        "ratios": ratios,
        "noise": noise,
        "quiet": not noise,
    }


def checkpoint_of(options: argparse.Namespace) -> Path:
    """The one named, or the synthetic one, made on first use."""
    if options.checkpoint:
        return Path(options.checkpoint)
    return default_checkpoint(options.config, max(*options.cameras, 3))


def describe_gpu(emulated_will_do: bool) -> dict[str, Any]:
    """The GPU that ours will use. Raises WorkerError where this build or machine has none, or only
    an emulated one, whose times are kept nowhere."""
    from benchmarks.gpu.machine import smi
    from smolvla_edge import _core

    found = _core.cuda()
    if not found["devices"]:
        reason = found["error"] or ("no GPU is there" if found["built"] else "built without CUDA")
        raise WorkerError(f"--device cuda: {reason}")
    if found["emulated"] and not emulated_will_do:
        raise WorkerError("--device cuda: the extension is the emulated one; try with --no-save")
    return {**found["devices"][0], "driver": found["driver"], "smi": smi()}


def measured_ceilings() -> dict[str, float | None]:
    """GFLOP/s of the libraries' largest products, from another process; {} without torch."""
    command = [sys.executable, "-m", "benchmarks.gpu.ceilings"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        log(f"no ceilings: {done.stderr.strip()[-300:]}")
        return {}
    found = json.loads(done.stdout)
    return {unit: 1e3 * rate for unit, rate in found.items() if unit != "gbps"}


def file_name(result: dict[str, Any], options: argparse.Namespace) -> str:
    """One file a device and configuration."""
    name: str = options.device_name or device_name(result["conditions"])
    if result["gpu"] and not options.device_name:
        from benchmarks.gpu.machine import slug

        name = slug(result["gpu"]["name"])
    return name if options.config == "base" else f"{name}-{options.config}"


def main() -> int:
    options = parse()
    try:
        if options.prepare_only:
            for precision in (*options.precision, *options.recipe):
                bundle_of(checkpoint_of(options), precision)
            return 0
        result = run(options)
    except WorkerError as error:
        log(f"error: {error}")
        return 1
    save(result, None if options.no_save else file_name(result, options), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

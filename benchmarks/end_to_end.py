"""End to end: smolvla_edge and LeRobot on the same frames, noise and weights, in turn.

    python -m benchmarks.end_to_end --cameras 1 2 --threads 2 --repeats 7 --rival lerobot

Each engine lives in a process of its own; one computes while the other blocks. The order within a
repeat alternates (A B, B A, ...), so that a slow drift of the machine hits both. Samples taken
while other processes used more than `--quiet` of the CPU time are left out of the medians and
repeated (at most `--retries` times); the JSON keeps them all. The actions of both engines are
compared in the same run: a speed without them is worth nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.conditions import collect, device_name, noise_report
from benchmarks.flops import exact_flops, reference_flops
from benchmarks.harness import (
    Sample,
    Worker,
    WorkerError,
    action_difference,
    log,
    summarise,
    timed_run,
    wait_for_quiet,
)
from benchmarks.inputs import FRAME_SIZES, write_inputs
from benchmarks.report import render

ROOT = Path(__file__).resolve().parent.parent
RIVAL = ROOT / "benchmarks" / "rivals" / "lerobot"
RESULTS = ROOT / "benchmarks" / "results"
OURS = "smolvla-edge"
CEILING_MS = 150
CEILING_BURSTS = 4  # the best of several: a ceiling is what the machine can do undisturbed


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--rival", choices=("lerobot",), default="lerobot")
    parser.add_argument("--no-rival", action="store_true", help="ours only")
    parser.add_argument(
        "--rival-precision", choices=("float32", "mixed"), default="float32",
        help="mixed: bfloat16 as the checkpoint ships",
    )  # fmt: skip
    parser.add_argument("--backend", choices=("native", "torch"), default="native")
    parser.add_argument("--checkpoint", type=Path, help="LeRobot folder (default: made, cached)")
    parser.add_argument("--bundle", type=Path, help="a bundle of the same checkpoint, for ours")
    parser.add_argument("--frame-size", choices=tuple(FRAME_SIZES), default="512x512")
    parser.add_argument("--language", choices=("max_length", "longest"), default="max_length")
    parser.add_argument("--slots", type=int, default=48, help="language slots")
    parser.add_argument("--valid-tokens", type=int, default=12, help="slots that hold a token")
    parser.add_argument("--quiet", type=float, default=0.05, help="CPU share left to others")
    parser.add_argument("--retries", type=int, default=10, help="disturbed samples to repeat")
    parser.add_argument(
        "--patience", type=float, default=5.0, help="seconds to wait for others before a sample"
    )
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    parser.add_argument("--device-name", help="file name in benchmarks/results")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results alone")
    return parser.parse_args(arguments)


def default_checkpoint(cameras: int) -> Path:
    """The full-size synthetic checkpoint, made on first use and kept in the user's cache."""
    from smolvla_edge.synthetic import make_checkpoint

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smolvla-edge"
    folder = cache / f"benchmark-full-{cameras}-cameras"
    if not (folder / "config.json").is_file():
        log(f"making the synthetic full-size checkpoint in {folder}")
        names = [f"observation.images.camera{i + 1}" for i in range(cameras)]
        make_checkpoint(folder, "full", cameras=names)
    return folder


def start_workers(options: argparse.Namespace, checkpoint: Path) -> dict[str, Worker]:
    threads = str(options.threads)
    ours = [sys.executable, "-m", "benchmarks.workers.ours", "--threads", threads]
    ours += ["--checkpoint", str(options.bundle or checkpoint), "--backend", options.backend]
    commands = {OURS: ours}
    if not options.no_rival:
        python = RIVAL / ".venv" / "bin" / "python"
        if not python.is_file():
            raise WorkerError(
                f"the rival's environment is missing; run {RIVAL}/install.sh or use --no-rival"
            )
        commands["lerobot"] = [
            str(python), str(RIVAL / "worker.py"), "--checkpoint", str(checkpoint),
            "--threads", threads, "--precision", options.rival_precision,
        ]  # fmt: skip
    workers: dict[str, Worker] = {}
    try:
        for name, command in commands.items():  # one after the other: loading is timed too
            log(f"starting {name}")
            workers[name] = Worker(name, command, ROOT)
    except BaseException:
        close_all(workers)
        raise
    return workers


def close_all(workers: dict[str, Worker]) -> None:
    for worker in workers.values():
        worker.close()


def measure(
    workers: dict[str, Worker], cameras: int, options: argparse.Namespace
) -> dict[str, list[Sample]]:
    """Interleaved samples of every engine for one number of cameras."""
    request = {"cameras": cameras, "language": options.language}
    for _ in range(options.warmup):
        for worker in workers.values():
            timed_run(worker, **request)
    samples: dict[str, list[Sample]] = {name: [] for name in workers}
    retries = options.retries
    repeat = 0
    while repeat < options.repeats:
        order = list(workers) if len(samples[OURS]) % 2 == 0 else list(workers)[::-1]
        disturbed = False
        for name in order:
            wait_for_quiet(options.quiet, options.patience)
            sample = timed_run(workers[name], **request)
            samples[name].append(sample)
            mark = ""
            if sample.foreign > options.quiet:
                disturbed = True
                mark = f"   disturbed: others used {sample.foreign:.0%} of the CPUs"
            log(f"  {cameras} camera(s)  {name:14s} {sample.ms:8.1f} ms{mark}")
        if disturbed and retries > 0:
            retries -= 1
        else:
            repeat += 1
    return samples


def measure_ceiling(worker: Worker) -> float | None:
    """GFLOP/s of the register FMA loop on the benchmark's threads, best of a few bursts."""
    best = 0.0
    for _ in range(CEILING_BURSTS):
        answer = worker.ask(cmd="ceiling", milliseconds=CEILING_MS)
        if answer["gflops"] is None:
            log(f"no ceiling: {answer['why']}")
            return None
        best = max(best, float(answer["gflops"]))
    return best


def _rounded(counts: dict[str, float]) -> dict[str, float]:
    return {name: round(value / 1e9, 3) for name, value in counts.items()}


def evaluate(
    samples: dict[str, list[Sample]], cameras: int, model: Any, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One entry per engine; ours carries the ratio and the action difference."""
    entries = []
    slots = options.slots if options.language == "max_length" else options.valid_tokens
    for name, series in samples.items():
        entry: dict[str, Any] = {"engine": name, "cameras": cameras}
        entry |= summarise(series, options.quiet)
        if name == OURS:
            entry["gflop"] = _rounded(exact_flops(model, cameras, options.valid_tokens))
            entry["repeatable"] = all(s.actions == series[0].actions for s in series)
        else:
            entry["gflop"] = _rounded(reference_flops(model, cameras, slots))
        entries.append(entry)
    if "lerobot" in samples:
        ours, rival = entries
        ours["ratio"] = rival["median_ms"] / ours["median_ms"]
        ours["action_difference"] = action_difference(samples[OURS][0], samples["lerobot"][0])
    return entries


def run(options: argparse.Namespace) -> dict[str, Any]:
    from smolvla_edge.checkpoint import read_checkpoint

    conditions = collect(ROOT)
    checkpoint = options.checkpoint or default_checkpoint(max(*options.cameras, 3))
    source = read_checkpoint(checkpoint, allow_unnormalized=True)
    workers = start_workers(options, checkpoint)
    try:
        with tempfile.TemporaryDirectory(prefix="smolvla-bench-") as folder:
            inputs = Path(folder) / "inputs.npz"
            write_inputs(
                inputs, source.model, max(options.cameras), options.frame_size,
                options.slots, options.valid_tokens,
            )  # fmt: skip
            for worker in workers.values():
                worker.ask(cmd="inputs", path=str(inputs))
        ceilings = [measure_ceiling(workers[OURS])]
        results = []
        for cameras in options.cameras:
            samples = measure(workers, cameras, options)
            results += evaluate(samples, cameras, source.model, options)
            ceilings.append(measure_ceiling(workers[OURS]))
    finally:
        close_all(workers)
    found = [value for value in ceilings if value is not None]
    noise = noise_report(conditions["load_average_before"][0], conditions["cores"], results)
    return {
        "format": 1,
        "conditions": conditions,
        "settings": {
            "threads": options.threads,
            "repeats": options.repeats,
            "warmup": options.warmup,
            "quiet_limit": options.quiet,
            "rival_precision": options.rival_precision,
            "backend": options.backend,
            "frame_size": options.frame_size,
            "language": options.language,
            "about": f"frames {options.frame_size} uint8, {options.slots} language slots of which "
            f"{options.valid_tokens} valid ({options.language}), {source.model.num_steps} steps, "
            f"all {source.model.chunk_size} actions",
        },
        "checkpoint": {
            "about": f"{source.provenance.get('source', checkpoint)}: "
            f"{sum(e.nbytes for e in source.tensors.values()) / 1e6:.0f} MB of live tensors, "
            + ", ".join(f"{n} {dtype}" for dtype, n in sorted(source.dtype_counts.items())),
            "bundle": str(options.bundle) if options.bundle else None,
        },
        "engines": {name: worker.ready for name, worker in workers.items()},
        "ceiling_gflops": max(found) if found else None,
        "ceiling_gflops_each": ceilings,
        "results": results,
        "noise": noise,
        "quiet": not noise,
    }


def save(result: dict[str, Any], options: argparse.Namespace) -> None:
    text = json.dumps(result, indent=1) + "\n"
    targets = [options.json] if options.json else []
    if not options.no_save:
        name = options.device_name or device_name(result["conditions"])
        RESULTS.mkdir(exist_ok=True)
        targets.append(RESULTS / f"{name}.json")
        (RESULTS / f"{name}.md").write_text(render(result))
    for target in targets:
        target.write_text(text)
        log(f"wrote {target}")


def main() -> int:
    options = parse()
    try:
        result = run(options)
    except WorkerError as error:
        log(f"error: {error}")
        return 1
    save(result, options)
    print(render(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Exports in ONNX Runtime beside the native backend and LeRobot: time, memory, size, actions.

    python -m benchmarks.export --cameras 1 2
    python -m benchmarks.export --config tiny --repeats 3 --no-save

Every way is a process of its own; they take turns (A B C, then C B A), as in `end_to_end`. All get
the same frames, tokens, state and noise, and all 50 actions are computed. Bundles are rounded to
nearest, exports hold their codes. The best of the ways that ONNX Runtime offers without our library
is what the native backend is compared with.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conditions import collect, device_name, noise_report
from benchmarks.engines import (
    CONFIGS,
    LEROBOT,
    OURS,
    ROOT,
    bundle_of,
    cache_folder,
    default_checkpoint,
    describe_checkpoint,
)
from benchmarks.harness import Worker, WorkerError, close_all, log, timed_runs, wait_for_quiet
from benchmarks.inputs import write_inputs
from benchmarks.report import FORMAT
from benchmarks.store import save
from benchmarks.summary import Sample, action_difference, ratio, summarise, turns

LEROBOT_NAME = "LeRobot float32"


@dataclass(frozen=True)
class Way:
    """bundle: a precision or recipe.  form: of the export, None for the native backend.  level:
    accuracy_level of 8-bit and 4-bit products.  library: whether our operators run."""

    name: str
    bundle: str
    form: str | None = None
    level: int = 0
    library: bool = False


WAYS = (
    Way("native float32", "float32"),
    Way("native int8", "int8"),
    Way("native balanced", "balanced"),
    Way("ONNX float32", "float32", "qdq"),
    Way("ONNX float32, library", "float32", "qdq", library=True),
    Way("ONNX int8 qdq", "int8", "qdq"),
    Way("ONNX int8 qdq, level 4", "int8", "qdq", level=4),
    Way("ONNX int8 integer", "int8", "integer"),
    Way("ONNX balanced integer", "balanced", "integer"),
    Way("ONNX balanced integer, library", "balanced", "integer", library=True),
    Way("ONNX small qdq", "small", "qdq"),
    Way("ONNX small qdq, level 4", "small", "qdq", level=4),
    Way("ONNX small integer, library", "small", "integer", library=True),
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.export", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--config", choices=CONFIGS, default="base", help="synthetic checkpoint")
    parser.add_argument("--only", nargs="+", choices=[way.name for way in WAYS], metavar="WAY")
    parser.add_argument("--no-rival", action="store_true", help="without LeRobot")
    parser.add_argument("--rival-python", help="runs LeRobot, instead of its own environment")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quiet", type=float, default=0.05, help="CPU share left to others")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds to wait for quiet")
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    parser.add_argument("--device-name", help="file name in benchmarks/results")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results alone")
    return parser.parse_args(arguments)


def export_of(bundle: Path, form: str) -> tuple[Path, dict[str, float]]:
    """The export folder of a bundle, made on first use -> it, and what making it took, if it was
    made now: seconds and peak memory."""
    folder = cache_folder() / "benchmark-exports" / f"{bundle.name}-{form}"
    manifest = folder / "export.json"
    if manifest.is_file() and manifest.stat().st_mtime > bundle.stat().st_mtime:
        return folder, {}
    log(f"exporting {folder}")
    program = (
        "import resource, sys, time; start = time.perf_counter();"
        "from smolvla_edge.cli import main\n"
        "try: main()\n"
        "finally: print(time.perf_counter() - start,"
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "export", str(bundle), str(folder)]
    command += ["--form", form, "--no-verify", "--allow-unnormalized", "--force"]
    done = subprocess.run(command, cwd=bundle.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkerError(f"smolvla-edge export: {done.stderr.strip()[-2000:]}")
    seconds, mib = (float(word) for word in done.stderr.split()[-2:])
    return folder, {"seconds": seconds, "peak_rss_mib": mib}


def size_mib(folder: Path) -> float:
    """Of what the way needs on the device: all of a bundle; of an export the three stages."""
    skipped = ("policy.onnx", "VERIFICATION.json", "CARD.md")
    files = [path for path in folder.iterdir() if path.is_file() and path.name not in skipped]
    return sum(path.stat().st_size for path in files) / 2**20


def start(ways: list[Way], checkpoint: Path, options: argparse.Namespace) -> tuple[Any, Any]:
    """(workers by name, what is known of each before it runs)."""
    workers: dict[str, Worker] = {}
    about: dict[str, dict[str, Any]] = {}
    shared = ["--threads", str(options.threads), "--device", "cpu"]
    try:
        for way in ways:
            path, made = bundle_of(checkpoint, way.bundle), {}
            command = [sys.executable, str(OURS)]
            if way.form is None:
                compute = "float32" if way.bundle == "float32" else "bfloat16"
                command += ["--backend", "native", "--precision", compute]
            else:
                path, made = export_of(path, way.form)
                command += ["--backend", "onnx", "--precision", "float32"]
                command += ["--accuracy-level", str(way.level)]
                command += ["--custom-ops"] if way.library else ["--no-custom-ops"]
            about[way.name] = {"mib": size_mib(path), "made": made, "library": way.library}
            log(f"starting {way.name}")
            workers[way.name] = Worker(way.name, [*command, "--path", str(path), *shared], ROOT)
        if not options.no_rival:
            python = Path(options.rival_python or LEROBOT / ".venv" / "bin" / "python")
            command = [str(python), str(LEROBOT / "worker.py"), "--checkpoint", str(checkpoint)]
            log(f"starting {LEROBOT_NAME}")
            about[LEROBOT_NAME] = {"mib": size_mib(checkpoint), "made": {}, "library": False}
            command += ["--precision", "float32", *shared]
            workers[LEROBOT_NAME] = Worker(LEROBOT_NAME, command, ROOT)
    except BaseException:
        close_all(workers)
        raise
    return workers, about


def measure(
    workers: dict[str, Worker], cameras: int, options: argparse.Namespace
) -> dict[str, list[Sample]]:
    """Interleaved samples of every way; what others disturbed is repeated, as often as planned."""
    request = {"cameras": cameras, "language": "max_length"}
    for worker in workers.values():
        worker.ask(cmd="prepare", **request)
    samples: dict[str, list[Sample]] = {name: [] for name in workers}
    spare = options.repeats
    for index in range(options.repeats):
        for name in turns(workers, index):
            while True:
                wait_for_quiet(options.quiet, options.patience)
                turn = timed_runs(workers[name], **request)
                samples[name] += turn
                disturbed = turn[0].foreign > options.quiet
                mark = f"   disturbed: {turn[0].foreign:.0%}" if disturbed else ""
                log(f"  {cameras} camera(s) {name:34s} {turn[0].ms:8.1f} ms{mark}")
                if not disturbed or spare == 0:
                    break
                spare -= 1
    return samples


def evaluate(
    samples: dict[str, list[Sample]],
    about: dict[str, dict[str, Any]],
    cameras: int,
    quiet: float,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(an entry for each way, the ratios that are asked about)."""
    reference = samples.get(LEROBOT_NAME) or samples["native float32"]
    entries = {
        name: {
            "engine": name,
            "cameras": cameras,
            "language": "max_length",
            **about[name],
            **summarise(series, quiet),
            "action_difference": action_difference(series[0], reference[0]),
        }
        for name, series in samples.items()
    }
    plain = [e for n, e in entries.items() if n.startswith("ONNX") and not about[n]["library"]]
    best = min(plain, key=lambda entry: entry["p50_ms"], default=None)
    pairs = [
        ("ONNX float32", LEROBOT_NAME),
        ("ONNX int8 integer", "ONNX float32"),
        ("ONNX small qdq", "ONNX float32"),
        ("native float32", "ONNX float32"),
        ("native balanced", best and best["engine"]),
        ("ONNX balanced integer, library", "ONNX balanced integer"),
    ]
    there = [(a, b) for a, b in pairs if a in entries and b in entries]
    return list(entries.values()), [ratio(entries[a], entries[b]) for a, b in there]


def main() -> int:
    options = parse()
    conditions = collect(ROOT, "benchmarks.export")
    checkpoint = default_checkpoint(options.config, max(options.cameras))
    model, about_weights = describe_checkpoint(checkpoint)
    ways = [way for way in WAYS if options.only is None or way.name in options.only]
    workers, about = start(ways, checkpoint, options)
    ready = {name: worker.ready for name, worker in workers.items()}
    results: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory(prefix="smolvla-bench-") as folder:
            inputs = Path(folder) / "inputs.npz"
            write_inputs(inputs, model, max(options.cameras), "640x480", 48, 12)
            for worker in workers.values():
                worker.ask(cmd="inputs", path=str(inputs))
        for cameras in options.cameras:
            samples = measure(workers, cameras, options)
            entries, found = evaluate(samples, about, cameras, options.quiet)
            results += entries
            ratios += found
    finally:
        close_all(workers)
    noise = noise_report(conditions["load_average_before"][0], conditions["cores"], results)
    result = {
        "format": FORMAT,
        "kind": "export",
        "title": f"Exports in ONNX Runtime on {conditions['cpu']['model']}, "
        f"{options.threads} threads",
        "about": "One chunk of actions from uint8 camera frames, batch 1.",
        "conditions": conditions,
        "settings": {
            "checkpoint": about_weights,
            "input": f"frames 640x480 uint8, a prompt of 12 tokens, {model.num_steps} steps, all "
            f"{model.chunk_size} actions",
            "threads": options.threads,
            "quiet limit": options.quiet,
        },
        "engines": ready,
        "results": results,
        "ratios": ratios,
        "noise": noise,
        "quiet": not noise,
    }
    keep = None if options.no_save else options.device_name or device_name(conditions)
    save(result, keep and f"{keep}-export", options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Our operations beside oneDNN (through torch) and ONNX Runtime, at SmolVLA's shapes, in turn.

    python -m benchmarks.libraries --threads 1 2
    python -m benchmarks.libraries --only vision --inductor

For each operation of a chunk (benchmarks/shapes.py) every way in which a library computes it, and
ours, take turns for `--milliseconds` each; medians over the rounds. What a library computed is
compared with float32 first: a fast wrong answer is an error, not a rival. Weights and inputs of one
operation stay in the caches for all alike.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.ceilings import merge
from benchmarks.conditions import collect, device_name
from benchmarks.engines import ROOT
from benchmarks.harness import Watch, Worker, WorkerError, close_all, log, wait_for_quiet
from benchmarks.report import FORMAT
from benchmarks.shapes import ATTENTIONS, LINEARS, AttentionShape, LinearShape
from benchmarks.store import save
from benchmarks.summary import percentile, turns

OURS = ROOT / "benchmarks" / "workers" / "ours_ops.py"
LIBRARIES = ROOT / "benchmarks" / "rivals" / "libraries"
# Largest error over largest value. float32: orders of summation; bfloat16: the result's last bit
# (2^-9 of a value) and, in attention, that of the weights; int8 and int4: what random weights lose.
LARGEST_ERROR = {"float32": 1e-4, "bfloat16": 3e-2, "int8": 5e-2, "int4": 0.25}
Shape = LinearShape | AttentionShape


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.libraries", description=__doc__.splitlines()[0]
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}))
    parser.add_argument("--isa", default="", help="force ours to an instruction set")
    parser.add_argument(
        "--only", default="", help="operations whose name has this in it; shares are of these"
    )
    parser.add_argument("--inductor", action="store_true", help="torch.compile's linears too")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--milliseconds", type=float, default=60.0, help="one turn of one variant")
    parser.add_argument("--quiet", type=float, default=0.05, help="CPU share left to others")
    parser.add_argument("--retries", type=int, default=5, help="disturbed rounds to repeat")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds to wait for others")
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    parser.add_argument("--device-name", help="file name in benchmarks/results")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results alone")
    return parser.parse_args(arguments)


def request_of(shape: Shape) -> dict[str, Any]:
    if isinstance(shape, LinearShape):
        return {"op": "linear", "rows": shape.rows, "depth": shape.depth, "out": shape.out}
    return {
        "op": "attention",
        "rows": shape.rows,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "lengths": shape.lengths,
    }


def start_workers(threads: int, options: argparse.Namespace) -> dict[str, Worker]:
    python = LIBRARIES / ".venv" / "bin" / "python"
    if not python.is_file():
        raise WorkerError(f"the libraries' environment is missing; run {LIBRARIES}/install.sh")
    ours = [sys.executable, str(OURS), "--threads", str(threads)]
    ours += ["--isa", options.isa] if options.isa else []
    theirs = [str(python), str(LIBRARIES / "worker.py"), "--threads", str(threads)]
    theirs += ["--inductor"] if options.inductor else []
    workers: dict[str, Worker] = {}
    try:
        workers["smolvla-edge"] = Worker("smolvla-edge", ours, ROOT)
        workers["libraries"] = Worker("libraries", theirs, ROOT, timeout=1800)
    except BaseException:
        close_all(workers)
        raise
    return workers


def prepare(workers: dict[str, Worker], shape: Shape) -> list[dict[str, Any]]:
    """Every variant of an operation that is right: [{"worker", "variant", "precision", "error"}]"""
    found = []
    for owner, worker in workers.items():
        answer = worker.ask(cmd="prepare", **request_of(shape))
        for name, variant in answer["variants"].items():
            if not variant["error"] <= LARGEST_ERROR[variant["precision"]]:
                raise WorkerError(
                    f"{shape.name}: {owner} {name} is off by {variant['error']:.1e} of the largest "
                    f"value; expected at most {LARGEST_ERROR[variant['precision']]:.0e}"
                )
            found.append({"worker": owner, "variant": name, **variant, "seconds": []})
    return found


def measure(
    workers: dict[str, Worker], shape: Shape, options: argparse.Namespace
) -> dict[str, Any]:
    """Interleaved rounds of every variant of one operation."""
    variants = prepare(workers, shape)
    disturbed = 0
    retries = options.retries
    done = 0
    while done < options.repeats:
        wait_for_quiet(options.quiet, options.patience)
        watch = Watch(*workers.values())
        times = {}
        for index in turns(range(len(variants)), done):
            v = variants[index]
            request = {"variant": v["variant"], "milliseconds": options.milliseconds}
            times[index] = workers[v["worker"]].ask(cmd="time", **request)["seconds"]
        foreign, _ = watch.stop()
        if foreign > options.quiet and retries > 0:
            retries -= 1
            continue
        disturbed += foreign > options.quiet
        done += 1
        for index, seconds in times.items():
            variants[index]["seconds"].append(seconds)
    for v in variants:
        v["median_us"] = percentile(v["seconds"], 0.5) * 1e6
        v["gflops"] = shape.flops / v["median_us"] * 1e-3
        v["seconds"] = [round(s, 9) for s in v["seconds"]]
    return {
        "op": request_of(shape)["op"],
        "name": shape.name,
        "shape": shape.text,
        "calls": shape.calls,
        "gflop": shape.flops * 1e-9,
        "bf16": getattr(shape, "bf16", True),
        "codes": getattr(shape, "codes", False),
        "variants": variants,
        "disturbed": disturbed,
        "disturbed_used": disturbed > options.repeats // 2,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    conditions = collect(ROOT, "benchmarks.libraries")
    shapes = [s for s in (*LINEARS, *ATTENTIONS) if options.only in s.name]
    if not shapes:
        raise WorkerError(f"--only {options.only}: no operation has that in its name")
    results: list[dict[str, Any]] = []
    ceilings: dict[str, dict[str, float | None]] = {}
    engines: dict[str, Any] = {}
    for threads in options.threads:
        workers = start_workers(threads, options)
        try:
            engines |= {name: worker.ready for name, worker in workers.items()}
            bursts = [workers["smolvla-edge"].ask(cmd="ceiling")["ceilings"]]
            for shape in shapes:
                result = {"threads": threads, **measure(workers, shape, options)}
                results.append(result)
                best = max(result["variants"], key=lambda v: v["gflops"])
                log(f"  {threads} thread(s) {shape.name:24s} best: {best['variant']}")
            bursts.append(workers["smolvla-edge"].ask(cmd="ceiling")["ceilings"])
            ceilings[str(threads)] = merge(bursts)
        finally:
            close_all(workers)
    noise = [
        f"{r['name']}, {r['threads']} thread(s): {r['disturbed']} of {options.repeats} rounds "
        "disturbed by other processes"
        for r in results
        if r["disturbed"]
    ]
    return {
        "format": FORMAT,
        "kind": "libraries",
        "title": f"Single operations on {conditions['cpu']['model']}",
        "about": "Our operations beside torch (oneDNN, MKL, FBGEMM) and ONNX Runtime at SmolVLA's "
        "shapes.",
        "conditions": conditions,
        "settings": {
            "chunk": "1 camera, 48 valid language tokens: 113 prefix rows"
            + (f"; only operations with {options.only!r} in their name" if options.only else ""),
            "rounds": f"{options.repeats} of {options.milliseconds:.0f} ms each, interleaved",
            "quiet limit": options.quiet,
        },
        "engines": engines,
        "ceilings": ceilings,
        "results": results,
        "noise": noise,
        "quiet": not noise,
    }


def main() -> int:
    options = parse()
    try:
        result = run(options)
    except WorkerError as error:
        log(f"error: {error}")
        return 1
    name = f"{options.device_name or device_name(result['conditions'])}-libraries"
    save(result, None if options.no_save else name, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

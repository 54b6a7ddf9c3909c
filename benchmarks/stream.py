"""A plan at work: our time over the frames of a closed loop, beside LeRobot's on the same frames.

    python -m benchmarks.stream --plan steps=2,cache.threshold=0.02,cache.dilate=0
    python -m benchmarks.stream --cameras 2 --plan ...

The full-size model (synthetic weights: what a plan costs in success is docs/evaluation.md's) sees
what the demo policy saw in the simulator, drawn as 640 x 480 pixels, one frame for every chunk. A
cache makes calls unlike: ours are timed on every frame of every episode, and means are compared.
LeRobot takes as long for any frame, and is timed on every --rival-every'th. Every engine lives in
its own process; one computes while the others block, in alternating order, as in end_to_end.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conditions import collect, device_name, noise_report
from benchmarks.engines import (
    CONFIGS,
    RECIPES,
    ROOT,
    Engine,
    Start,
    bundle_of,
    cache_folder,
    command_of,
    default_checkpoint,
    describe_checkpoint,
)
from benchmarks.frames import CAMERAS, EPISODES, SIZE, Stream, closed_loop
from benchmarks.harness import Watch, Worker, WorkerError, close_all, log, wait_for_quiet
from benchmarks.inputs import PAD_ID
from benchmarks.report import FORMAT
from benchmarks.store import save
from benchmarks.summary import percentile, turns

QUIET = 0.05  # CPU share left to others
_TRIES = 4  # of a rival's call that others disturb
SLOTS, WORDS = 48, 12  # language slots of LeRobot, tokens of the prompt
EXACT = "exact"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stream", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--plan", nargs="+", required=True, help="in words; `exact` runs with it")
    parser.add_argument("--cameras", type=int, choices=(1, 2), default=1,
                        help="the static one, or that and the gripper's")  # fmt: skip
    parser.add_argument("--recipe", choices=RECIPES, default="balanced")
    parser.add_argument("--config", choices=CONFIGS, default="base", help="synthetic checkpoint")
    parser.add_argument("--n-action-steps", type=int, default=4, help="from frame to frame")
    parser.add_argument("--rival-every", type=int, default=8, metavar="N", help="0: ours only")
    parser.add_argument("--frames", type=int, help="of each episode; all unless said")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--patience", type=float, default=20, help="seconds to wait for quiet")
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    parser.add_argument("--device-name", help="file name in benchmarks/results")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results alone")
    return parser.parse_args(arguments)


def start(options: argparse.Namespace, checkpoint: Path) -> tuple[dict[str, Worker], list[str]]:
    """Ours, a process a plan, and the rivals -> (workers, the names of the rivals)."""
    begin = Start(options.threads)
    commands = {}
    for plan in dict.fromkeys((EXACT, *options.plan)):
        command, environment = command_of(Engine("ours", options.recipe), checkpoint, begin)
        commands[plan] = ([*command, "--plan", plan], environment)
    rivals = [Engine("lerobot", p) for p in ("float32", "bfloat16")] if options.rival_every else []
    for engine in rivals:
        commands[engine.name] = command_of(engine, checkpoint, begin)
    workers: dict[str, Worker] = {}
    try:
        for name, (command, environment) in commands.items():
            log(f"starting {name}")
            workers[name] = Worker(name, command, ROOT, environment=environment)
    except BaseException:
        close_all(workers)
        raise
    return workers, [engine.name for engine in rivals]


def observations(
    streams: list[Stream], model: Any, options: argparse.Namespace, folder: Path
) -> Iterator[tuple[int, int, Path]]:
    """(episode, frame, the file with what every engine is given)."""
    random = np.random.default_rng(20)
    tokens = np.full(SLOTS, PAD_ID, np.int64)
    tokens[:WORDS] = random.integers(3, model.vocab, WORDS)
    names = list(CAMERAS)[: options.cameras]
    for episode, stream in enumerate(streams):
        for number in range(len(stream[names[0]]))[: options.frames]:
            noise = random.standard_normal((model.chunk_size, model.max_action_dim))
            file = folder / "inputs.npz"
            np.savez(
                file,
                tokens=tokens,
                valid_tokens=np.array(WORDS),
                state=random.standard_normal(model.state_dim).astype(np.float32),
                noise=noise.astype(np.float32),
                **{f"frame{i}": stream[name][number] for i, name in enumerate(names)},
            )
            yield episode, number, file


def measure(
    workers: dict[str, Worker],
    rivals: list[str],
    streams: list[Stream],
    model: Any,
    options: argparse.Namespace,
) -> dict[str, list[dict[str, Any]]]:
    """Of every engine its calls: {episode, frame, ms, stages, dirty, actions, foreign, stolen}."""
    request = {"cameras": options.cameras, "language": "max_length"}
    calls: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    with tempfile.TemporaryDirectory(prefix="smolvla-bench-") as folder:
        seen = enumerate(observations(streams, model, options, Path(folder)))
        for turn, (episode, number, file) in seen:
            timed = [
                name
                for name in workers
                if name not in rivals or turn % options.rival_every == options.rival_every // 2
            ]
            for name in timed:
                workers[name].ask(cmd="inputs", path=str(file))
                if turn == 0 or (name in rivals and not calls[name]):
                    workers[name].ask(cmd="prepare", **request)
                if number == 0 and name not in rivals:
                    workers[name].ask(cmd="reset")
            for name in turns(timed, turn):
                # A cache has gone on after a call; a rival has no memory and can be asked again.
                for _ in range(_TRIES if name in rivals else 1):
                    call = timed_call(workers[name], request, options.patience)
                    log(f"  {episode}.{number:02d} {name:60s} {call['ms']:8.1f} ms "
                        f"{call['foreign']:.0%}")  # fmt: skip
                    if call["foreign"] <= QUIET:
                        break
                calls[name].append({"episode": episode, "frame": number, **call})
    return calls


def timed_call(worker: Worker, request: dict[str, Any], patience: float) -> dict[str, Any]:
    """A worker's answer, and who else computed meanwhile."""
    wait_for_quiet(QUIET, patience)
    watch = Watch(worker)
    answer = worker.ask(cmd="run", **request)
    foreign, stolen = watch.stop()
    return {"foreign": foreign, "stolen": stolen, **answer}


def summarise(name: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """One engine's entry. Disturbed calls are left out of the times while most remain."""
    quiet = [call for call in calls if call["foreign"] <= QUIET]
    used = quiet if 2 * len(quiet) > len(calls) else calls
    times = [call["ms"] for call in used]
    dirty = [part for call in calls for part in call.get("dirty", []) if part is not None]
    return {
        "engine": name,
        "mean_ms": float(np.mean(times)),
        "p50_ms": percentile(times, 0.5),
        "p90_ms": percentile(times, 0.9),
        "max_ms": max(times),
        "stages_ms": {s: float(np.mean([c["stages"][s] for c in used])) for s in used[0]["stages"]},
        "dirty": float(np.mean(dirty)) if dirty else None,
        "samples": len(calls),
        "samples_used": len(used),
        "disturbed": len(calls) - len(quiet),
        "disturbed_used": used is calls and len(quiet) < len(calls),
        "spread": 0.0,  # calls are unlike by intent
        "all_stolen": [round(call["stolen"], 4) for call in calls],
        "all_ms": [round(call["ms"], 2) for call in calls],
    }


def differences(calls: dict[str, list[dict[str, Any]]], rival: str) -> dict[str, float]:
    """{engine: largest difference of normalised actions from the rival's, on frames of both}."""
    by_frame = {(call["episode"], call["frame"]): call["actions"] for call in calls[rival]}
    found = {}
    for name, made in calls.items():
        pairs = [
            (np.array(call["actions"]), np.array(by_frame[key]))
            for call in made
            if (key := (call["episode"], call["frame"])) in by_frame
        ]
        found[name] = max(float(np.abs(a - b).max()) for a, b in pairs)
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    conditions = collect(ROOT, "benchmarks.stream")
    streams = closed_loop(cache_folder(), options.n_action_steps)
    checkpoint = default_checkpoint(options.config, options.cameras)
    model, about_weights = describe_checkpoint(checkpoint)
    bundle_of(checkpoint, options.recipe)
    workers, rivals = start(options, checkpoint)
    ready = {name: worker.ready for name, worker in workers.items()}
    try:
        calls = measure(workers, rivals, streams, model, options)
    finally:
        close_all(workers)
    results = [
        {"cameras": options.cameras, "language": "", **summarise(name, made)}
        for name, made in calls.items()
    ]
    noise = noise_report(conditions["load_average_before"][0], conditions["cores"], results)
    length = sum(result["samples"] for result in results[:1])
    return {
        "format": FORMAT,
        "kind": "stream",
        "title": f"Plans over a closed loop's frames, {options.cameras} camera(s)",
        "about": "The mean time of a chunk over whole episodes, keyframes included.",
        "conditions": conditions,
        "settings": {
            "checkpoint": about_weights,
            "ours": options.recipe,
            "threads": options.threads,
            "frames": f"{SIZE[0]}x{SIZE[1]} uint8, {' and '.join(list(CAMERAS)[: options.cameras])}"
            f", {length} of {len(EPISODES)} episodes, {options.n_action_steps} control steps of "
            "1/80 s apart",
            "input": f"a prompt of {WORDS} tokens ({SLOTS} slots in LeRobot), all "
            f"{model.chunk_size} actions unless the plan says less; LeRobot takes "
            f"{model.num_steps} steps",
            "quiet limit": QUIET,
        },
        "engines": ready,
        "results": results,
        "rivals": rivals,
        "differences": differences(calls, rivals[0]) if rivals else None,
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
    name = options.device_name or device_name(result["conditions"])
    suffix = f"stream-{options.cameras}-camera"
    save(result, None if options.no_save else f"{name}-{suffix}", options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What bfloat16 costs in accuracy: ours against our float32, LeRobot's against its own.

    python -m benchmarks.precision --observations 50
    python -m benchmarks.precision --observations 2 --config tiny

Both sides run the same weights in both precisions on the same observations (frames, state, prompt,
noise from a seed), and each is compared with its own float32, stage by stage. The golden cases that
hold a recorded bfloat16 run of LeRobot (`native.*`) are compared with that recording.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conditions import collect, device_name
from benchmarks.engines import (
    CONFIGS,
    LEROBOT,
    PRECISIONS,
    ROOT,
    bundle_of,
    convert,
    default_checkpoint,
    describe_checkpoint,
)
from benchmarks.harness import Worker, WorkerError, log
from benchmarks.inputs import write_inputs
from benchmarks.precision_stages import Errors, compare, errors_between, merge
from benchmarks.report import FORMAT
from benchmarks.store import save
from benchmarks.workers.ours import compute_of

LIMIT = 1.5  # times LeRobot's own error
FLOAT32_GAP = 1e-4  # of the largest action
FIRST_SEED = 1000
GOLDEN_CASES = ("full", "mixed_bf16")
Tensors = dict[str, np.ndarray]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--observations", type=int, default=50)
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--config", choices=CONFIGS, default="base", help="synthetic checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="a LeRobot folder instead")
    parser.add_argument("--no-golden", action="store_true", help="without the golden cases")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    parser.add_argument("--device-name", help="file name in benchmarks/results")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results alone")
    return parser.parse_args(arguments)


class OurPair:
    """The bundles of one checkpoint in both precisions, traced on the same input."""

    def __init__(self, bundles: dict[str, Path], threads: int) -> None:
        import smolvla_edge

        self.engines = {}
        for precision, path in bundles.items():
            policy = smolvla_edge.load(path, threads=threads, allow_unnormalized=True)
            self.engines[precision] = policy.engine
            self.model = policy.model
            if (found := compute_of(policy.engine.info())) != precision:
                raise WorkerError(f"{path} computes in {found}, not in {precision}")

    def trace(
        self, frames: list[np.ndarray], tokens: np.ndarray, state: np.ndarray, noise: np.ndarray
    ) -> dict[str, Tensors]:
        """Every recorded tensor of both precisions. frames: [H, W, 3]; state: not yet padded."""
        from smolvla_edge import _core

        width, height = self.model.resize or frames[0].shape[1::-1]
        pixels = np.stack([_core.letterbox(f, width, height) for f in frames])
        padded = np.zeros(self.model.max_state_dim, np.float32)
        padded[: len(state)] = state
        cameras, mask = np.ones(len(frames), bool), np.ones(len(tokens), bool)
        traces = {}
        for precision, engine in self.engines.items():
            trace = engine.trace(pixels, cameras, tokens, mask, padded, noise)
            trace["out.actions"] = trace["out.actions_padded"][..., : self.model.action_dim]
            traces[precision] = trace
        return traces

    def errors(self, path: Path, cameras: int) -> tuple[Errors, np.ndarray]:
        """Of one stored observation, and its float32 actions [chunk, action_dim]."""
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        frames = [arrays[f"frame{i}"] for i in range(cameras)]
        tokens = arrays["tokens"][: int(arrays["valid_tokens"])]
        traces = self.trace(frames, tokens, arrays["state"], arrays["noise"])
        actions = traces["float32"]["out.actions"].reshape(-1, self.model.action_dim)
        return errors_between(traces["bfloat16"], traces["float32"]), actions


def our_pair(checkpoint: Path, threads: int) -> OurPair:
    return OurPair({p: bundle_of(checkpoint, p) for p in PRECISIONS}, threads)


def start_lerobot(checkpoint: Path, threads: int) -> Worker:
    python = LEROBOT / ".venv" / "bin" / "python"
    if not python.is_file():
        raise WorkerError(f"the rival's environment is missing; run {LEROBOT}/install.sh")
    command = [str(python), str(LEROBOT / "precision_worker.py")]
    command += ["--checkpoint", str(checkpoint), "--threads", str(threads)]
    return Worker("lerobot", command, ROOT)


def observations(ours: OurPair, lerobot: Worker, options: argparse.Namespace) -> dict[str, Any]:
    """Errors over seeded observations; each is run by both sides before the next one."""
    random = np.random.default_rng(FIRST_SEED)
    slots = ours.model.tokenizer_max_length
    each: dict[str, list[Errors]] = {"ours": [], "rival": []}
    widest = 0.0
    with tempfile.TemporaryDirectory(prefix="smolvla-precision-") as folder:
        path = Path(folder) / "observation.npz"
        for index in range(options.observations):
            valid = int(random.integers(min(4, slots), slots + 1))
            write_inputs(
                path, ours.model, options.cameras, "640x480", slots, valid, FIRST_SEED + index
            )
            errors, actions = ours.errors(path, options.cameras)
            answer = lerobot.ask(cmd="errors", path=str(path), cameras=options.cameras)
            widest = max(widest, same_float32(actions, np.array(answer["actions"])))
            each["ours"].append(errors)
            each["rival"].append(answer["errors"])
            a, b = (each[side][-1]["actions"]["max"] for side in ("ours", "rival"))
            log(f"  observation {index + 1}: largest action error ours {a:.4f}, LeRobot {b:.4f}")
    return {
        "case": f"{options.observations} observations, {options.cameras} cameras",
        "stages": compare(merge(each["ours"]), merge(each["rival"])),
        "float32_gap": widest,
        "actions_max_each": {
            side: [round(errors["actions"]["max"], 6) for errors in runs]
            for side, runs in each.items()
        },
    }


def same_float32(ours: np.ndarray, rival: np.ndarray) -> float:
    """Largest difference of the float32 actions; raises WorkerError when it is no rounding.

    Two errors can be compared only when both sides were given the same weights and input.
    """
    gap = float(np.abs(ours - rival).max())
    if not gap <= FLOAT32_GAP * float(np.abs(rival).max()):
        raise WorkerError(
            f"the float32 actions differ by {gap:.1e} of {np.abs(rival).max():.2f}: the two sides "
            "did not compute the same model on the same input"
        )
    return gap


def golden(case: str, ours: OurPair | None, threads: int) -> dict[str, Any]:
    """Errors of a golden case, LeRobot's from its recording; `ours`: a pair of its checkpoint."""
    folder = ROOT / "tests" / "golden"
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    import golden_support as support

    recorded = support.golden(case)
    rival = errors_between(
        {
            n.removeprefix("native."): _rows(v, recorded)
            for n, v in recorded.items()
            if "native" in n
        },
        {n: _rows(v, recorded) for n, v in recorded.items()},
    )
    with tempfile.TemporaryDirectory(prefix="smolvla-golden-") as scratch:
        if ours is None:
            checkpoint = support.assemble(case, Path(scratch) / "checkpoint")
            tokenizer = support.TINY / "pipeline" / "tokenizer" / "tokenizer.json"
            bundles = {p: Path(scratch) / p for p in PRECISIONS}
            for precision, bundle in bundles.items():
                convert(checkpoint, bundle, precision, "--tokenizer", str(tokenizer))
            ours = OurPair(bundles, threads)
        seen = support.observation(case)
        frames = [
            np.ascontiguousarray(f[0].transpose(1, 2, 0)) for f in seen.frames if f is not None
        ]
        tokens = seen.tokens[0][seen.token_mask[0]]
        traces = ours.trace(frames, tokens, seen.state[0], seen.noise[0])
    mine = errors_between(traces["bfloat16"], traces["float32"])
    return {"case": f"golden case {case}", "stages": compare(mine, rival)}


def _rows(value: np.ndarray, recorded: Tensors) -> np.ndarray:
    """Keys and values without the rows of masked tokens; anything else as it is."""
    valid = recorded["out.prefix_pad_masks"][0]
    return value[:, :, valid] if value.ndim == 4 and value.shape[2] == len(valid) else value


def run(options: argparse.Namespace) -> dict[str, Any]:
    conditions = collect(ROOT, "benchmarks.precision")
    checkpoint = options.checkpoint or default_checkpoint(options.config, max(options.cameras, 3))
    _, about_weights = describe_checkpoint(checkpoint)
    ours = our_pair(checkpoint, options.threads)
    results = []
    if not options.no_golden:
        for case in GOLDEN_CASES:
            # The golden weights of `full` are those of the synthetic base checkpoint.
            same = case == "full" and options.config == "base" and not options.checkpoint
            if case == "full" and not same:
                continue
            results.append(golden(case, ours if same else None, options.threads))
            log(f"  golden case {case} done")
    lerobot = start_lerobot(checkpoint, options.threads)
    try:
        results.append(observations(ours, lerobot, options))
    finally:
        lerobot.close()
    versions = {"smolvla-edge": _version(), "numpy": np.__version__}
    info = ours.engines["bfloat16"].info()
    return {
        "format": FORMAT,
        "kind": "precision",
        "title": "bfloat16 against float32" + _suffix(options, ", "),
        "about": "The error of a bfloat16 run against the float32 run of the same weights.",
        "conditions": conditions,
        "settings": {
            "checkpoint": about_weights,
            "observations": f"{options.cameras} frames 640x480 uint8, prompts of 4 tokens up to "
            f"all, seeds from {FIRST_SEED}",
            "threads": options.threads,
        },
        "engines": {
            "smolvla-edge": {"versions": versions, "info": {"isa": info.get("isa")}},
            "lerobot": lerobot.ready,
        },
        "limit": LIMIT,
        "results": results,
        "noise": None,
        "quiet": None,
    }


def _version() -> str:
    from smolvla_edge.version import __version__

    return __version__


def _suffix(options: argparse.Namespace, before: str) -> str:
    plain = options.checkpoint is not None or options.config == "base"
    return "" if plain else f"{before}{options.config}"


def main() -> int:
    options = parse()
    try:
        result = run(options)
    except WorkerError as error:
        log(f"error: {error}")
        return 1
    name = options.device_name or device_name(result["conditions"])
    name = f"{name}-precision{_suffix(options, '-')}"
    save(result, None if options.no_save else name, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

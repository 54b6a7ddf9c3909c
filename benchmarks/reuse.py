"""What the visual token cache saves: time of the vision tower by the part of a frame that is new.

    python -m benchmarks.reuse --recipe balanced
    python -m benchmarks.reuse --precision bfloat16 --config tiny --rounds 2

One camera of 640 x 480 pixels, whose frames differ from the reference in so many blocks; every
fraction, the whole frame and no cache at all follow each other in every round. Nothing is said here
about what the reuse costs in accuracy: that is docs/performance.md's.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conditions import collect, device_name, noise_report
from benchmarks.engines import (
    CONFIGS,
    RECIPES,
    ROOT,
    bundle_of,
    default_checkpoint,
    describe_checkpoint,
)
from benchmarks.harness import Watch, log, wait_for_quiet
from benchmarks.report import FORMAT
from benchmarks.reuse_tables import WAYS
from benchmarks.store import save

FRAME = (480, 640)  # height, width
QUIET = 0.05  # CPU share left to others


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reuse", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--recipe", choices=RECIPES, help="integers; else --precision")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--config", choices=CONFIGS, default="base", help="synthetic checkpoint")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--patience", type=float, default=20, help="seconds to wait for quiet")
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    parser.add_argument("--device-name", help="file name in benchmarks/results")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results alone")
    return parser.parse_args(arguments)


class Camera:
    """A policy, and frames of which so many blocks differ from the first one."""

    def __init__(self, bundle: Path, threads: int) -> None:
        import smolvla_edge
        from smolvla_edge.plan import Cache, Plan

        self.policy = smolvla_edge.load(bundle, threads=threads, allow_unnormalized=True)
        model = self.policy.model
        random = np.random.default_rng(1)
        self._random = random
        self._noise = random.standard_normal((model.chunk_size, model.max_action_dim), np.float32)
        self._state = np.zeros(model.state_dim, np.float32)
        self._tokens = np.arange(4, 20)
        self._first = random.integers(0, 256, (*FRAME, 3), np.uint8)
        # One step: the flow is not what is measured.
        self.plain = Plan(steps=1)
        rule = Cache(0.01, keyframe_every=10**6, max_age=10**6, dilate=0, check=0)
        self.cached = Plan(steps=1, cache=rule)
        grid = model.image_size // model.patch_size // model.scale_factor
        self.blocks = grid * grid
        width, height = model.resize or FRAME[::-1]
        scale = max(FRAME[1] / width, FRAME[0] / height)
        # A block in the camera's pixels; the frame lies at the lower edge of a square.
        self._edge = int(model.patch_size * model.scale_factor * scale)
        self._across = FRAME[1] // self._edge
        self.shown = self._across * (FRAME[0] // self._edge)

    def call(self, frame: np.ndarray, plan: Any) -> Any:
        return self.policy.engine.predict(
            [frame], self._tokens, self._state, self._noise, plan, cameras=[0]
        )

    def frame(self, blocks: int) -> np.ndarray:
        """With so many blocks of new pixels; with none a single pixel is another by 1."""
        frame = self._first.copy()
        frame[0, 0, 0] ^= 1
        for block in range(blocks):
            y, x = block // self._across * self._edge, block % self._across * self._edge
            frame[y : y + self._edge, x : x + self._edge] = self._random.integers(
                0, 256, (self._edge, self._edge, 3), np.uint8
            )
        return frame

    def time(self, way: str) -> dict[str, float]:
        """Of one call in a way of WAYS; milliseconds, with the fraction that was computed."""
        self.policy.engine.reset()
        if way == "no cache":
            return _times(self.call(self.frame(self.shown), self.plain), 1.0)
        if way == "keyframe":
            result = self.call(self.frame(self.shown), self.cached)
        elif way == "same frame":
            self.call(self._first, self.cached)
            result = self.call(self._first, self.cached)
        else:
            self.call(self._first, self.cached)
            blocks = int(self.blocks * float(way))
            result = self.call(self.frame(blocks), self.cached)
            if result.cache[0].dirty != blocks / self.blocks:
                raise RuntimeError(f"expected {blocks} blocks computed, got {result.cache[0]}")
        return _times(result, result.cache[0].dirty)


def versions() -> dict[str, str]:
    import smolvla_edge

    return {"smolvla-edge": smolvla_edge.__version__, "numpy": np.__version__}


def _times(result: Any, dirty: float) -> dict[str, float]:
    return {
        "vision": result.timings["vision"],
        "preprocess": result.timings["preprocess"],
        "dirty": dirty,
    }


def measure(camera: Camera, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Of every way its samples, interleaved; those that others disturbed are counted and left out
    while enough remain."""
    ways = [way for way in WAYS if _fits(way, camera)]
    for way in ways:
        camera.time(way)
    kept: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    disturbed = dict.fromkeys(ways, 0)
    stolen: dict[str, list[float]] = {way: [] for way in ways}
    for done in range(options.rounds):
        for way in ways:
            wait_for_quiet(QUIET, options.patience)
            watch = Watch()
            sample = camera.time(way)
            foreign, taken = watch.stop()
            stolen[way].append(taken)
            if foreign > QUIET:
                disturbed[way] += 1
            else:
                kept[way].append(sample)
        log(f"round {done + 1} of {options.rounds}")
    return [
        {
            "engine": "ours",
            "cameras": 1,
            "language": way,
            "way": way,
            "disturbed": disturbed[way],
            "disturbed_used": not kept[way],
            "samples": options.rounds,
            "all_stolen": stolen[way],
            **_summary(kept[way] or [camera.time(way)]),
        }
        for way in ways
    ]


def _summary(samples: list[dict[str, float]]) -> dict[str, Any]:
    vision = np.array([sample["vision"] for sample in samples])
    low, median, high = np.percentile(vision, (10, 50, 90))
    return {
        "vision_ms": float(median),
        "vision_p90_ms": float(high),
        "preprocess_ms": float(np.median([sample["preprocess"] for sample in samples])),
        "dirty": samples[0]["dirty"],
        "spread": float((high - low) / median) if median >= 5 else 0.0,
    }


def _fits(way: str, camera: Camera) -> bool:
    if way.replace(".", "").isdigit():
        blocks = camera.blocks * float(way)
        return blocks == int(blocks) and blocks <= camera.shown
    return True


def main() -> int:
    options = parse()
    conditions = collect(ROOT, "benchmarks.reuse")
    name = options.recipe or options.precision
    checkpoint = default_checkpoint(options.config, 1)
    camera = Camera(bundle_of(checkpoint, name), options.threads)
    results = measure(camera, options)
    noise = noise_report(conditions["load_average_before"][0], conditions["cores"], results)
    height, width = FRAME
    result = {
        "format": FORMAT,
        "kind": "reuse",
        "title": f"Visual tokens kept from frame to frame, {name}",
        "about": "Time of the vision tower by the part of a frame that is computed anew.",
        "conditions": conditions,
        "settings": {
            "checkpoint": describe_checkpoint(checkpoint)[1],
            "weights": name,
            "threads": options.threads,
            "camera": f"one of {width} x {height} pixels",
            "blocks of the frame": camera.blocks,
            "rounds": options.rounds,
        },
        "engines": {"ours": {"versions": versions(), "info": camera.policy.engine.info()}},
        "results": results,
        "noise": noise,
        "quiet": not noise,
    }
    suffix = f"reuse-{name}"
    keep = None if options.no_save else options.device_name or device_name(conditions)
    save(result, keep and f"{keep}-{suffix}", options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())

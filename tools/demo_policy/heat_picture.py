"""The heat map of docs/performance.md: which blocks of a webcam's frames the token cache computes.

    python -m tools.demo_policy.heat_picture docs/pictures/heat_map.svg --plan fast

Frames as benchmarks.stream has them: the demo policy at work, its camera drawn as 640 x 480; blocks
as SmolVLA has them, 8 x 8 in the letterboxed frame.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.engines import cache_folder, default_checkpoint
from benchmarks.frames import EPISODES, closed_loop
from smolvla_edge.compress.observations import Observation
from smolvla_edge.presets import resolve_plan
from smolvla_edge.source import open_source
from smolvla_edge.tune.heat_map import computed, draw


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_policy.heat_picture", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--plan", default="fast")
    parser.add_argument("--episode", type=int, default=0, choices=range(len(EPISODES)))
    options = parser.parse_args(arguments)
    source = open_source(default_checkpoint("base", 1), allow_unnormalized=True)
    (camera,) = source.contract.robot_cameras()
    state = np.zeros(source.contract.state_dim, np.float32)
    stream = closed_loop(cache_folder())[options.episode]
    frames = [Observation({camera: frame}, state, EPISODES[options.episode][0])
              for frame in stream["static"]]  # fmt: skip
    plan = resolve_plan(options.plan, source.model.num_steps, {})
    seen = computed(source, plan, frames, camera)
    print(f"{np.mean([choice.dirty for choice in seen.choices]):.1%} computed")
    options.out.write_text(draw(seen, f"{EPISODES[options.episode][0]}, plan {options.plan}"))


if __name__ == "__main__":
    main()

"""What `smolvla-edge demo` runs on where no simulator is: frames of one demonstration.

    python -m tools.demo_policy.record smolvla_edge/assets/demo_frames.npz

Meta-World's expert presses the button, undisturbed, in a layout that training never saw. Kept are
every second frame, the states, and the actions that the expert took from each of them on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from smolvla_edge.dataset.arrow import decode_image
from smolvla_edge.eval.tasks import TASKS
from smolvla_edge.policy_config import ACTION, STATE
from tools.demo_policy.generate import STYLES, demonstrate
from tools.demo_policy.recipe import CAMERA, CHUNK

TASK, SEED, EVERY = "button-press", 0, 2


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_policy.record", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    found = demonstrate((TASK, SEED, None))
    assert found.solved and found.style == STYLES[0]
    rows = range(0, len(found.rows[ACTION]) - CHUNK + 1, EVERY)
    frames = np.stack([decode_image(found.rows[CAMERA][i], TASK) for i in rows])
    actions = np.stack([found.rows[ACTION][i : i + CHUNK] for i in rows])
    states = np.stack([found.rows[STATE][i] for i in rows])
    words = np.array(TASKS[TASK].instruction)
    np.savez_compressed(
        options.out, frames=frames, states=states, actions=actions, instruction=words
    )
    print(f"{len(rows)} frames in {options.out}, {options.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()

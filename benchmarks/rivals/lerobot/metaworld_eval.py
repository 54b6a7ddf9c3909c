"""LeRobot's own lerobot-eval on a checkpoint of ours: its environment, policy and loop.

    python metaworld_eval.py CHECKPOINT OUT --episodes 10

LeRobot 0.4.4 in float32. Its Meta-World environment is not ours: Meta-World's own narrow layouts,
480 x 480 pictures with shadows, its own words for each task, 500 steps, and the stale first
picture after a reset. OUT/eval_info.json is what LeRobot writes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl")

import build
import stubs
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.scripts import lerobot_eval

TASKS = (
    "drawer-open", "button-press", "window-open", "window-close", "faucet-open", "faucet-close",
    "push", "pick-place", "button-press-topdown", "hammer",
)  # fmt: skip


def offline(checkpoint: Path, folder: Path) -> Path:
    """A copy whose tokenizer is named by its path, without settings that 0.4.4 does not know."""
    copy = folder / "policy"
    shutil.copytree(checkpoint, copy)
    raw = json.loads((copy / "config.json").read_text())
    known = {"type", *(field.name for field in dataclasses.fields(SmolVLAConfig))}
    kept = {key: value for key, value in raw.items() if key in known}
    (copy / "config.json").write_text(json.dumps(kept))
    processor = json.loads((copy / "policy_preprocessor.json").read_text())
    for step in processor["steps"]:
        if "tokenizer_name" in step.get("config", {}):
            step["config"]["tokenizer_name"] = str(copy / "tokenizer")
    (copy / "policy_preprocessor.json").write_text(json.dumps(processor))
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=10, help="of each task")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    options = parser.parse_args()
    build.torch.set_num_threads(1)  # small products: threads would wait for each other
    stubs.use_vlm_config(json.loads((options.checkpoint / "vlm_config.json").read_text()))
    theirs = lerobot_eval.make_policy

    def make_policy(*args: Any, **kwargs: Any) -> Any:
        return theirs(*args, **kwargs).float()

    lerobot_eval.make_policy = make_policy
    # No films: they would draw every picture a second time.
    everything = lerobot_eval.eval_policy_all
    lerobot_eval.eval_policy_all = lambda **words: everything(
        **{**words, "max_episodes_rendered": 0}
    )
    with tempfile.TemporaryDirectory() as folder:
        policy = offline(options.checkpoint, Path(folder))
        sys.argv = [
            "lerobot-eval",
            f"--policy.path={policy}",
            "--policy.device=cpu",
            "--env.type=metaworld",
            "--env.task=" + ",".join(f"{task}-v3" for task in options.tasks),
            f"--eval.n_episodes={options.episodes}",
            "--eval.batch_size=1",
            f"--output_dir={options.out}",
        ]
        lerobot_eval.main()
    info = json.loads((options.out / "eval_info.json").read_text())
    for entry in info["per_task"]:
        successes = entry["metrics"]["successes"]
        print(f"{entry['task_group']:26s} {sum(successes)} of {len(successes)}")
    print(f"{'mean':26s} {info['overall']['pc_success']:.1f} % of {info['overall']['n_episodes']}, "
          f"{info['overall']['eval_s']:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()

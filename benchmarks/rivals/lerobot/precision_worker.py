"""LeRobot's own bfloat16 error: the policy as shipped beside the same weights in float32.

    .venv/bin/python precision_worker.py --checkpoint FOLDER --threads 2

Requests: {"cmd": "errors", "path": FILE.npz, "cameras": n} -> {"errors": stage -> max, sum, count,
largest; "actions": those of float32}; FILE is one observation as benchmarks.inputs writes it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[3]))  # the repository, for `benchmarks`
sys.path.append(str(Path(__file__).resolve().parents[3] / "tools"))  # for `golden_capture`

from benchmarks.precision_stages import errors_between
from benchmarks.workers.channel import memory_mib, open_channel, serve

TOKENS = "observation.language.tokens"
TOKEN_MASK = "observation.language.attention_mask"


class Pair:
    """The policy in both precisions, each with a recorder of its stages."""

    def __init__(self, folder: Path) -> None:
        import build
        from golden_capture import Recorder

        self.policies = {p: build.load_policy(folder, p) for p in build.PRECISIONS}
        self.recorders = {p: Recorder(policy) for p, policy in self.policies.items()}
        self.torch = build.torch
        self.use_cameras = build.use_cameras

    def errors(self, request: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        with np.load(request["path"], allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        runs = {p: self._run(p, arrays, request["cameras"]) for p in self.policies}
        return {
            "errors": errors_between(runs["bfloat16"], runs["float32"]),
            "actions": runs["float32"]["out.actions"][0].tolist(),
        }

    def _run(self, precision: str, arrays: dict[str, Any], cameras: int) -> dict[str, Any]:
        from lerobot.policies.utils import prepare_observation_for_inference

        torch, policy, recorder = self.torch, self.policies[precision], self.recorders[precision]
        names = self.use_cameras(policy, cameras)
        observation: dict[str, Any] = {
            name: arrays[f"frame{index}"].copy() for index, name in enumerate(names)
        }
        observation["observation.state"] = arrays["state"].copy()
        batch = prepare_observation_for_inference(observation, torch.device("cpu"))
        valid = int(arrays["valid_tokens"])
        batch[TOKENS] = torch.from_numpy(arrays["tokens"][:valid])[None]
        batch[TOKEN_MASK] = torch.ones(1, valid, dtype=torch.bool)
        recorder.tensors.clear()
        actions = policy.predict_action_chunk(batch, noise=torch.from_numpy(arrays["noise"])[None])
        recorder.keep("out.actions", actions)
        return {
            name: value.float().numpy()
            for name, value in recorder.tensors.items()
            if value.is_floating_point()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    channel = open_channel()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    start = time.perf_counter()
    import build

    build.torch.set_num_threads(arguments.threads)
    pair = Pair(arguments.checkpoint)
    ready = {
        "versions": build.versions(),
        "threads": build.torch.get_num_threads(),
        "load_seconds": time.perf_counter() - start,
        "rss_after_load_mib": memory_mib("VmRSS"),
    }
    serve(channel, ready, {"errors": pair.errors})


if __name__ == "__main__":
    main()

"""LeRobot as a benchmark worker: JSON lines on stdin, JSON lines on stdout.

    .venv/bin/python worker.py --checkpoint FOLDER --threads 2 --precision float32|bfloat16

Sends {"ready": {...}} once the policy is loaded, then answers one line per request:
    {"cmd": "inputs", "path": FILE.npz}                    the arrays that both sides are given
    {"cmd": "prepare", "cameras": n, "language": "max_length"|"longest"}   compile, warm up
    {"cmd": "run", "cameras": n, "language": "max_length"|"longest"}       one timed chunk
    {"cmd": "burst", "lead_in": n, "calls": n, ...}        so many, the first ones not counted
    {"cmd": "stop"}
With --compile the policy is compiled for every (cameras, language) that is prepared; --device cuda
runs it on the GPU, where a run ends with the actions in the host's memory. Between
requests it blocks in read(); OpenMP's threads sleep after a few milliseconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[3]))  # the repository, for `benchmarks`

from benchmarks.workers.burst import bursts, counted
from benchmarks.workers.channel import memory_mib, open_channel, reset_peak, serve
from benchmarks.workers.device_memory import DeviceMemory

TOKENS = "observation.language.tokens"
TOKEN_MASK = "observation.language.attention_mask"


class Stages:
    """Adds up the time of LeRobot's own stage functions (perf_counter around each call)."""

    def __init__(self, model: Any) -> None:
        self.ms: dict[str, float] = {}
        joint = model.vlm_with_expert
        self._wrap(joint, "embed_image", lambda kwargs: "vision")
        self._wrap(model, "embed_prefix", lambda kwargs: "embed_prefix")
        self._wrap(joint, "forward", self._which_forward)
        self._wrap(model, "denoise_step", lambda kwargs: "flow")

    @staticmethod
    def _which_forward(kwargs: dict[str, Any]) -> str | None:
        return "prefill" if kwargs.get("fill_kv_cache") else None  # the rest is in denoise_step

    def _wrap(self, owner: Any, name: str, stage_of: Any) -> None:
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            stage = stage_of(kwargs)
            if stage is None:
                return inner(*args, **kwargs)
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                spent = (time.perf_counter() - start) * 1e3
                self.ms[stage] = self.ms.get(stage, 0.0) + spent

        setattr(owner, name, timed)

    def report(self, total_ms: float) -> dict[str, float]:
        vision = self.ms.get("vision", 0.0)
        prefix = self.ms.get("embed_prefix", 0.0) - vision + self.ms.get("prefill", 0.0)
        flow = self.ms.get("flow", 0.0)
        rest = total_ms - vision - prefix - flow
        return {"preprocess": rest, "vision": vision, "prefix": prefix, "flow": flow}


class Rival:
    """LeRobot's policy and the inputs that it is asked to run."""

    def __init__(self, policy: Any, build: Any, compiled: bool, device: str) -> None:
        self.policy = policy
        self.build = build
        self.compiled = compiled
        self.device = build.torch.device(device)
        # A clock inside the graph would break it, so a compiled policy has no stages; on a GPU it
        # would have to wait for the device each time.
        self.stages = None if compiled or device == "cuda" else Stages(policy.model)
        self.arrays: dict[str, Any] = {}

    def inputs(self, request: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        with np.load(request["path"], allow_pickle=False) as archive:
            self.arrays = {name: archive[name] for name in archive.files}
        return {"ok": True}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """The first calls of a case, which compile what is to be compiled."""
        start = time.perf_counter()
        # Kernels chosen while compiling are loaded and warm after the second, graphs are recorded
        # in the second and replayed in the third.
        for _ in range(3 if self.device.type == "cuda" else 2):
            self.run(request)
        answer = {"seconds": time.perf_counter() - start, "peak_rss_mib": memory_mib("VmHWM")}
        reset_peak()  # what compiling needed is not what running needs
        if self.compiled and self.device.type == "cuda":
            # Above 0 the compiler gave up CUDA graphs somewhere.
            counters = self.build.torch._dynamo.utils.counters
            answer["cudagraph_skips"] = int(counters["inductor"]["cudagraph_skips"])
        return answer

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """One chunk from uint8 frames to normalised actions; the timer covers all of it."""
        torch = self.build.torch
        from lerobot.policies.utils import prepare_observation_for_inference

        names = self.build.use_cameras(self.policy, request["cameras"])
        tokens, valid = self.arrays["tokens"], int(self.arrays["valid_tokens"])
        slots = len(tokens) if request["language"] == "max_length" else valid
        mask = torch.zeros(1, slots, dtype=torch.bool)
        mask[:, :valid] = True
        noise = torch.from_numpy(self.arrays["noise"])[None]
        observation: dict[str, Any] = {
            name: self.arrays[f"frame{index}"] for index, name in enumerate(names)
        }
        observation["observation.state"] = self.arrays["state"]
        if self.stages:
            self.stages.ms.clear()
        start = time.perf_counter()
        batch = prepare_observation_for_inference(observation, self.device)
        batch[TOKENS] = torch.from_numpy(tokens[:slots])[None].to(self.device)
        batch[TOKEN_MASK] = mask.to(self.device)
        actions = self.policy.predict_action_chunk(batch, noise=noise.to(self.device)).cpu()
        total = (time.perf_counter() - start) * 1e3
        answer = {
            "ms": total,
            "stages": self.stages.report(total) if self.stages else {},
            "actions": actions[0].float().tolist(),
            "peak_rss_mib": memory_mib("VmHWM"),
        }
        if self.device.type == "cuda":
            answer["allocated_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile, max-autotune")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    channel = open_channel()
    memory = DeviceMemory()
    # OMP_WAIT_POLICY stays unset: libgomp then spins for a few milliseconds after a parallel
    # region and sleeps, which is its fastest setting here ("passive" made the rival 20 % slower).
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    start = time.perf_counter()
    import build

    build.torch.set_num_threads(arguments.threads)
    build.torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as ours
    with memory.during():
        policy = build.load_policy(arguments.checkpoint, arguments.precision, arguments.device)
    if arguments.compile:
        from compiled import compile_policy

        compile_policy(policy, arguments.device)
    load_seconds = time.perf_counter() - start
    peak_load = memory_mib("VmHWM")
    ready = {
        "versions": build.versions(),
        "precision": arguments.precision,
        "threads": build.torch.get_num_threads(),
        "load_seconds": load_seconds,
        "rss_after_load_mib": memory_mib("VmRSS"),
        "peak_rss_load_mib": peak_load,
        "info": {"device": arguments.device},
        "device_mib": memory.own_mib,
        "peak_is_of_inference_only": reset_peak(),
    }
    rival = Rival(policy, build, arguments.compile, arguments.device)
    run = counted(rival.run, memory)
    serve(channel, ready, {"inputs": rival.inputs, "prepare": counted(rival.prepare, memory),
                           "run": run, "burst": bursts(run)})  # fmt: skip


if __name__ == "__main__":
    main()

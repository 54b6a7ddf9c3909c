"""Our own torch model as a rival, eager or compiled: a stand-in where LeRobot cannot be installed.

    python benchmarks/workers/reference.py --checkpoint FOLDER --precision float32|bfloat16
        --device cuda [--compile]

It is not LeRobot. It computes what LeRobot computes (padded words, keys projected anew each step),
in plain torch operations and without our Triton kernels, in float32 or in the checkpoint's own
mixture of bfloat16 and float32. Requests as in rivals/lerobot/worker.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

# Last, so that an installed smolvla_edge comes before the source tree's, which has no core.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.workers.burst import bursts, counted
from benchmarks.workers.channel import memory_mib, open_channel, reset_peak, serve
from benchmarks.workers.device_memory import DeviceMemory


class Reference:
    def __init__(self, model: Any, torch: Any, device: str, compiled: bool) -> None:
        self.model, self.torch, self.device = model, torch, device
        self.compiled = compiled
        self.arrays: dict[str, Any] = {}
        self.sample = model.sample_actions
        if compiled:
            torch._dynamo.config.recompile_limit = 64  # one entry a case
            self.sample = torch.compile(self.sample, mode="max-autotune", dynamic=False)

    def inputs(self, request: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        with np.load(request["path"], allow_pickle=False) as archive:
            self.arrays = {name: archive[name] for name in archive.files}
        return {"ok": True}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        for _ in range(3):  # compiles, records graphs, replays them
            answer = self.run(request)
            if "error" in answer:
                return answer
        found = {"seconds": time.perf_counter() - start, "peak_rss_mib": memory_mib("VmHWM")}
        reset_peak()
        return {**found, **graphs_of(self.torch)} if self.compiled else found

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """One chunk from uint8 frames to normalised actions on the host."""
        import numpy as np

        from smolvla_edge.kernels import plain_torch
        from smolvla_edge.model import letterbox

        torch, arrays, config = self.torch, self.arrays, self.model.config
        count = request["cameras"]
        valid = int(arrays["valid_tokens"])
        slots = len(arrays["tokens"]) if request["language"] == "max_length" else valid
        state = np.zeros(config.max_state_dim, np.float32)
        state[: len(arrays["state"])] = arrays["state"]
        start = time.perf_counter()
        with torch.inference_mode(), plain_torch():
            images = []
            for i in range(count):
                frame = self._tensor(arrays[f"frame{i}"]).permute(2, 0, 1)[None].float() / 255
                images.append(letterbox(frame, config.resize))
            actions = self.sample(
                images,
                torch.ones(1, count, dtype=torch.bool, device=self.device),
                self._tensor(arrays["tokens"][:slots])[None],
                self._tensor(np.arange(slots) < valid)[None],
                self._tensor(state)[None],
                self._tensor(arrays["noise"])[None],
            )[0, :, : config.action_dim].cpu()
        total = (time.perf_counter() - start) * 1e3
        return {
            "ms": total,
            "stages": {},
            "actions": actions.float().tolist(),
            "peak_rss_mib": memory_mib("VmHWM"),
            "allocated_mib": allocated_mib(torch, self.device),
        }

    def _tensor(self, array: Any) -> Any:
        return self.torch.from_numpy(array).to(self.device)


def allocated_mib(torch: Any, device: str) -> float | None:
    """The most that torch's allocator handed out so far."""
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None


def graphs_of(torch: Any) -> dict[str, Any]:
    """How often the compiler gave up CUDA graphs: above 0 the time is not what its name says."""
    counters = torch._dynamo.utils.counters
    return {"cudagraph_skips": int(counters["inductor"]["cudagraph_skips"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile, max-autotune")
    arguments = parser.parse_args()
    channel = open_channel()
    memory = DeviceMemory()
    start = time.perf_counter()
    with memory.during():
        import torch

        from smolvla_edge.checkpoint import read_checkpoint
        from smolvla_edge.model import load_model

        torch.set_num_threads(arguments.threads)
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as ours
        # What the model makes without naming a device would be the CPU's, and end CUDA graphs.
        torch.set_default_device(arguments.device)
        source = read_checkpoint(arguments.checkpoint, allow_unnormalized=True)
        dtype = torch.float32 if arguments.precision == "float32" else None
        model = load_model(source.model, source.tensors, dtype=dtype, device=arguments.device)
    ready = {
        "versions": {"torch": torch.__version__},
        "precision": arguments.precision,
        "threads": torch.get_num_threads(),
        "info": {"device": arguments.device},
        "load_seconds": time.perf_counter() - start,
        "rss_after_load_mib": memory_mib("VmRSS"),
        "peak_rss_load_mib": memory_mib("VmHWM"),
        "device_mib": memory.own_mib,
        "peak_is_of_inference_only": reset_peak(),
    }
    rival = Reference(model, torch, arguments.device, arguments.compile)
    run = counted(rival.run, memory)
    serve(channel, ready, {"inputs": rival.inputs, "prepare": counted(rival.prepare, memory),
                           "run": run, "burst": bursts(run)})  # fmt: skip


if __name__ == "__main__":
    main()

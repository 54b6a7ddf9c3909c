"""smolvla_edge as a benchmark worker (run by benchmarks.end_to_end).

    python benchmarks/workers/ours.py --path BUNDLE --precision float32 --threads 2 [--plan WORDS]

Requests: {"cmd": "inputs", "path"}, {"cmd": "prepare" or "run", "cameras", "language"},
{"cmd": "burst", "lead_in", "calls", ...as run}, {"cmd": "reset"} between streams of frames,
{"cmd": "ceiling"}, {"cmd": "stop"}. A run goes
from uint8 frames and token ids to actions; the state is given normalised, as LeRobot's policy gets
it, and the normalised actions are compared.
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


class Ours:
    def __init__(self, engine: Any, plan: Any, cameras: int) -> None:
        self.engine = engine
        self.plan = plan
        self.cameras = cameras
        self.arrays: dict[str, Any] = {}

    def inputs(self, request: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        with np.load(request["path"], allow_pickle=False) as archive:
            self.arrays = {name: archive[name] for name in archive.files}
        return {"ok": True}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """What one process does once for a case: one call that warms caches and records graphs."""
        start = time.perf_counter()
        answer = self.run(request)
        if "error" in answer:
            return answer
        return {"seconds": time.perf_counter() - start, "peak_rss_mib": memory_mib("VmHWM")}

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """One chunk. `language` changes nothing for us: padded slots are never computed."""
        wanted = request["cameras"]
        if wanted > self.cameras:
            return {"error": f"the checkpoint has {self.cameras} cameras, {wanted} asked for"}
        frames = [self.arrays[f"frame{i}"] if i < wanted else None for i in range(self.cameras)]
        valid = int(self.arrays["valid_tokens"])
        tokens = self.arrays["tokens"][:valid]
        start = time.perf_counter()
        result = self.engine.predict(
            frames,
            tokens,
            self.arrays["state"],
            self.arrays["noise"],
            self.plan,
            state_is_normalized=True,
            cameras=list(range(self.cameras)),
        )
        total = (time.perf_counter() - start) * 1e3
        stages = {name: float(ms) for name, ms in result.timings.items() if name != "total"}
        return {
            "ms": total,
            "stages": stages,
            "actions": result.normalized.tolist(),
            "peak_rss_mib": memory_mib("VmHWM"),
            "dirty": [None if report is None else report.dirty for report in result.cache],
        }

    def reset(self, request: dict[str, Any]) -> dict[str, Any]:
        self.engine.reset()
        return {"ok": True}


def compute_of(info: dict[str, Any]) -> str:
    """The precision that an engine says it computes in."""
    return str(info.get("compute", "float32"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", type=Path, required=True, help="bundle or checkpoint folder")
    parser.add_argument("--precision", required=True, help="what the engine must compute in")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--backend", choices=("native", "torch", "onnx"), default="native")
    parser.add_argument("--accuracy-level", type=int, default=0, help="of backend onnx")
    parser.add_argument("--custom-ops", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--plan", default="exact", help="in words: steps=2,cache.threshold=0.02")
    arguments = parser.parse_args()
    channel = open_channel()
    memory = DeviceMemory()
    start = time.perf_counter()
    import numpy

    import smolvla_edge

    on_gpu = arguments.device == "cuda" and arguments.backend == "native"
    options = {}
    if arguments.backend == "onnx":
        options["accuracy_level"] = arguments.accuracy_level
        options["custom_ops"] = arguments.custom_ops
    with memory.during():  # on a GPU with all its graphs
        policy = smolvla_edge.load(
            arguments.path,
            backend=arguments.backend,
            device=arguments.device,
            threads=None if on_gpu else arguments.threads,
            plan=arguments.plan,
            allow_unnormalized=True,
            allow_missing_cameras=True,
            **options,
        )
    load_seconds = time.perf_counter() - start
    peak_load = memory_mib("VmHWM")
    info = policy.engine.info()
    if compute_of(info) != arguments.precision:
        raise SystemExit(
            f"{arguments.path} computes in {compute_of(info)}, not in {arguments.precision}"
        )
    ready = {
        "versions": {"smolvla-edge": smolvla_edge.__version__, "numpy": numpy.__version__},
        "precision": arguments.precision,
        "threads": arguments.threads,
        "info": {key: value for key, value in info.items() if isinstance(value, (str, int, float))},
        "load_seconds": load_seconds,
        "rss_after_load_mib": memory_mib("VmRSS"),
        "peak_rss_load_mib": peak_load,
        "device_mib": memory.own_mib,
        "peak_is_of_inference_only": reset_peak(),
    }
    ours = Ours(policy.engine, policy.plan, policy.model.max_cameras)

    def ceiling(request: dict[str, Any]) -> dict[str, Any]:
        from benchmarks.ceilings import measure

        return {"ceilings": measure(arguments.threads, str(info.get("isa", "")))}

    run = counted(ours.run, memory)
    handlers = {
        "inputs": ours.inputs,
        "prepare": counted(ours.prepare, memory),
        "run": run,
        "burst": bursts(run),
        "reset": ours.reset,
        "ceiling": ceiling,
    }
    serve(channel, ready, handlers)


if __name__ == "__main__":
    main()

"""smolvla_edge as a benchmark worker (run by benchmarks.end_to_end).

    python -m benchmarks.workers.ours --checkpoint FOLDER --threads 2 [--backend native]

Requests: {"cmd": "inputs", "path"}, {"cmd": "run", "cameras", "language"}, {"cmd": "ceiling",
"milliseconds"}, {"cmd": "stop"}. A run goes from uint8 frames and token ids to actions; the state
is given normalised, as LeRobot's policy gets it, and the normalised actions are compared.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks.workers.channel import memory_mib, open_channel, reset_peak, serve


class Ours:
    def __init__(self, engine: Any, cameras: int) -> None:
        self.engine = engine
        self.cameras = cameras
        self.arrays: dict[str, Any] = {}

    def inputs(self, request: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        with np.load(request["path"], allow_pickle=False) as archive:
            self.arrays = {name: archive[name] for name in archive.files}
        return {"ok": True}

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
            frames, tokens, self.arrays["state"], self.arrays["noise"], state_is_normalized=True
        )
        total = (time.perf_counter() - start) * 1e3
        stages = {name: float(ms) for name, ms in result.timings.items() if name != "total"}
        return {
            "ms": total,
            "stages": stages,
            "actions": result.normalized.tolist(),
            "peak_rss_mib": memory_mib("VmHWM"),
        }


def fma_ceiling(threads: int, isa: str) -> Any:
    """A handler that measures the register FMA loop in GFLOP/s, or says that there is none."""

    def measure(request: dict[str, Any]) -> dict[str, Any]:
        try:
            from smolvla_edge import _core

            rate = _core.peak(threads, isa, request["milliseconds"])
        except (ImportError, AttributeError) as error:
            return {"gflops": None, "why": str(error)}
        return {"gflops": float(rate)}

    return measure


def open_engine(path: Path, backend: str, threads: int) -> tuple[Any, Any]:
    """(engine, model configuration) of a bundle or a LeRobot checkpoint folder."""
    from smolvla_edge.backends import open_backend

    if (path / "bundle.json").is_file():
        from smolvla_edge.bundle import read_bundle

        source: Any = read_bundle(path)
    else:
        from smolvla_edge.checkpoint import read_checkpoint

        source = read_checkpoint(path, allow_unnormalized=True)
    engine = open_backend(
        source.model, source.tensors, source.contract, backend=backend, threads=threads
    )
    return engine, source.model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--backend", choices=("native", "torch"), default="native")
    arguments = parser.parse_args()
    channel = open_channel()
    start = time.perf_counter()
    engine, model = open_engine(arguments.checkpoint, arguments.backend, arguments.threads)
    load_seconds = time.perf_counter() - start
    peak_load = memory_mib("VmHWM")
    info = engine.info()
    ready = {
        "name": "smolvla-edge",
        "versions": _versions(),
        "precision": "float32",
        "threads": arguments.threads,
        "info": {key: value for key, value in info.items() if isinstance(value, (str, int, float))},
        "load_seconds": load_seconds,
        "rss_after_load_mib": memory_mib("VmRSS"),
        "peak_rss_load_mib": peak_load,
        "peak_is_of_inference_only": reset_peak(),
    }
    ours = Ours(engine, model.max_cameras)
    handlers = {
        "inputs": ours.inputs,
        "run": ours.run,
        "ceiling": fma_ceiling(arguments.threads, str(info.get("isa", ""))),
    }
    serve(channel, ready, handlers)


def _versions() -> dict[str, str]:
    import importlib.metadata as metadata

    found = {}
    for name in ("smolvla-edge", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    main()

"""torch (oneDNN, MKL) and ONNX Runtime as a benchmark worker for single operations.

    .venv/bin/python worker.py --threads 2 [--inductor]

Requests, one JSON line each:
    {"cmd": "prepare", "op": "linear", "rows", "depth", "out"}
    {"cmd": "prepare", "op": "attention", "rows", "heads", "kv_heads", "lengths"}
        -> {"variants": {name: {"precision", "error"}}}; error: relative to the float32 result
    {"cmd": "time", "variant", "milliseconds"} -> {"seconds": median of one call}
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[3]))  # the repository, for `benchmarks`

from benchmarks.workers.channel import memory_mib, open_channel, serve
from benchmarks.workers.timing import median_seconds


def versions() -> dict[str, str]:
    import importlib.metadata as metadata

    return {name: metadata.version(name) for name in ("torch", "onnxruntime", "numpy")}


class Libraries:
    """The variants of one operation at a time: name -> (precision, call that returns [rows, n])."""

    def __init__(self, threads: int, inductor: bool) -> None:
        self.threads = threads
        self.inductor = inductor
        self.variants: dict[str, tuple[str, Callable[[], Any]]] = {}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        import onnx_models
        import torch
        import torch_ops

        torch.manual_seed(0)
        if request["op"] == "linear":
            shape = (request["rows"], request["depth"], request["out"])
            self.variants = torch_ops.linears(*shape, inductor=self.inductor)
            x, weight = torch_ops.linear_data(*shape)
            self.variants["onnxruntime float32"] = (
                "float32", onnx_models.matmul(x.numpy(), weight.numpy(), self.threads),
            )  # fmt: skip
            self.variants |= torch_ops.integers(*shape)
            self.variants |= onnx_models.integers(x.numpy(), weight.numpy(), self.threads)
        elif request["op"] == "attention":
            sizes = (request["heads"], request["kv_heads"], request["lengths"])
            self.variants = torch_ops.attentions(*sizes)
            self.variants["onnxruntime float32"] = (
                "float32",
                onnx_models.attention(*torch_ops.attention_data(*sizes), self.threads),
            )
        else:
            return {"error": f"op: expected linear or attention, got {request['op']!r}"}
        return {"variants": self._checked()}

    def _checked(self) -> dict[str, dict[str, Any]]:
        """Every variant's largest difference from torch's float32, over its largest value."""
        import torch

        with torch.inference_mode():
            results = {n: _as_float(call()) for n, (_, call) in self.variants.items()}
        want = results["torch float32"]
        largest = float(want.abs().max())
        return {
            name: {
                "precision": self.variants[name][0],
                "error": float((got - want).abs().max()) / largest,
            }
            for name, got in results.items()
        }

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        import torch

        call = self.variants[request["variant"]][1]
        with torch.inference_mode():
            return {"seconds": median_seconds(call, request["milliseconds"])}


def _as_float(value: Any) -> Any:
    """Any variant's result as a float32 tensor [rows, columns]."""
    import numpy as np
    import torch

    tensor = torch.from_numpy(np.asarray(value)) if not torch.is_tensor(value) else value
    return tensor.float().reshape(-1, tensor.shape[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--inductor", action="store_true", help="compiled linears too (slow)")
    arguments = parser.parse_args()
    channel = open_channel()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    start = time.perf_counter()
    import torch

    torch.set_num_threads(arguments.threads)
    ready = {
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "load_seconds": time.perf_counter() - start,
        "rss_after_load_mib": memory_mib("VmRSS"),
    }
    libraries = Libraries(arguments.threads, arguments.inductor)
    serve(channel, ready, {"prepare": libraries.prepare, "time": libraries.time})


if __name__ == "__main__":
    main()

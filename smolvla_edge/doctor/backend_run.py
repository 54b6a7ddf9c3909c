"""One backend computes one synthetic observation, in a process of its own.

    python -m smolvla_edge.doctor.backend_run '{"checkpoint": ..., "backend": "native", ...}'

A broken installation may crash (an instruction that the CPU lacks, two libraries that do not fit
together); here that ends this process and is a line in the doctor's report. Writes
float32.npy, perhaps bfloat16.npy, and facts.json into the folder it is told.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

_SEED = 0
_TOKENS = 9
_RATES, _RATE_MS = 20, 2.0
_FRAME = (48, 72)  # not the model's size: the letterbox has something to do


def compute(job: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What was computed, and what computed it.

    {arithmetic: float32 [2, chunk, action_dim], model space and robot units}; native kernels
    compute in "float32" and "bfloat16", torch in "float32".

    job: checkpoint, backend ("native" or "torch"), device, isa ("" is the usual choice), threads.
    """
    from smolvla_edge.noise import normal
    from smolvla_edge.preprocess import unnormalize
    from smolvla_edge.source import open_source

    source = open_source(job["checkpoint"])
    model = source.model
    random = np.random.default_rng(_SEED)
    frames = [
        random.integers(0, 256, (*_FRAME, 3), dtype=np.uint8) for _ in source.contract.cameras
    ]
    tokens = random.integers(0, model.vocab, _TOKENS, dtype=np.int64)
    state = unnormalize(
        np.linspace(-1, 1, model.state_dim, dtype=np.float32), source.contract.state
    )
    noise = normal(_SEED, model.chunk_size, model.max_action_dim)
    make = _native if job["backend"] == "native" else _torch
    engines, facts = make(job, source)
    actions = {}
    for arithmetic, engine in engines.items():
        started = time.perf_counter()
        result = engine.predict(frames, tokens, state, noise)
        facts.setdefault("ms", round((time.perf_counter() - started) * 1e3, 3))  # of the first
        actions[arithmetic] = np.stack([result.normalized, result.actions])
    return actions, facts


def _native(job: dict[str, Any], source: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    from smolvla_edge.backends.native import NativeBackend, load_core
    from smolvla_edge.precision import COMPUTE

    parts = (source.model, source.tensors, source.contract)
    if job["device"] == "cuda":
        on_gpu = {c: NativeBackend(*parts, device="cuda", compute=c) for c in COMPUTE}
        info = on_gpu["float32"].info()
        return on_gpu, {name: info[name] for name in ("device_name", "sm")}
    engines = {
        compute: NativeBackend(*parts, threads=job["threads"], isa=job["isa"], compute=compute)
        for compute in COMPUTE
    }
    info = engines["float32"].info()
    # The best of many short moments: others may use the CPU in the rest of them.
    rate = max(load_core().peak(1, job["isa"], _RATE_MS) for _ in range(_RATES))
    return engines, {"isa": info["isa"], "threads": info["threads"], "gflops": round(rate, 1)}


def _torch(job: dict[str, Any], source: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    facts = _torch_facts()
    from smolvla_edge.backends.torch import TorchBackend

    if job["device"] == "cuda":  # cuDNN rounds a convolution's operands to 10 bits by default
        import torch

        torch.backends.cudnn.allow_tf32 = False
    parts = (source.model, source.tensors, source.contract)
    engine = TorchBackend(*parts, device=job["device"], threads=job["threads"])
    return {"float32": engine}, facts


def _torch_facts() -> dict[str, Any]:
    """What this torch was built for and what it sees."""
    with warnings.catch_warnings(record=True) as said:  # a driver too old is said as a warning
        warnings.simplefilter("always")
        import torch

        available = bool(torch.cuda.is_available())
    return {
        "torch": str(torch.__version__),
        "cuda_built": torch.version.cuda,
        "cuda_available": available,
        "cuda_warning": str(said[-1].message)[:300] if said and not available else "",
        "architectures": list(torch.cuda.get_arch_list()) if available else [],
    }


def main() -> None:
    job = json.loads(sys.argv[1])
    folder = Path(job["folder"])
    actions, facts = compute(job)
    for arithmetic, values in actions.items():
        np.save(folder / f"{arithmetic}.npy", values)
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()

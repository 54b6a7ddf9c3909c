"""The native CUDA backend: is it in this build, and would device "auto" take a GPU?"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from smolvla_edge.doctor.finding import PASS, WARN, Finding, gib
from smolvla_edge.doctor.gpu import GpuFacts
from smolvla_edge.doctor.process import Run

# In a process of its own: a broken driver may crash or hang whoever asks it. Our own path first.
_CHILD = """import sys
sys.path[:] = sys.argv.pop().split(chr(0x1F))
import json
from smolvla_edge import _core
print(json.dumps(_core.cuda()))"""


def read_cuda(run: Run) -> dict[str, Any]:
    """What `_core.cuda()` says; {"error": ...} alone when asking it failed."""
    asked = run([sys.executable, "-c", _CHILD, chr(0x1F).join(sys.path)])
    try:
        found = json.loads(asked.out) if not asked.problem else None
    except ValueError:
        found = None
    if isinstance(found, dict) and "built" in found:
        return found
    return {"error": f"asking it {asked.problem or 'gave no answer'}. {asked.last_line}".strip()}


def check_cuda(cuda: Mapping[str, Any], gpu: GpuFacts) -> Finding:
    facts = dict(cuda)
    hardware = bool(gpu.devices or gpu.hardware)
    error = cuda.get("error")
    if "built" not in cuda:
        return _warn(
            f"the CUDA backend does not answer: {error}",
            "use device='cpu'; make the line 'gpu' pass, and report this line if it stays",
            facts,
        )
    if not cuda["built"]:
        if not hardware:
            return Finding(
                "software",
                "cuda backend",
                PASS,
                "not in this build, and no GPU is here",
                facts=facts,
            )
        return _warn(
            "not in this build: policies run on the CPU although a GPU is here",
            "to use it, in the source folder, with nvcc (12.2 or newer) on PATH: pip install . -C "
            "cmake.define.SMOLVLA_CUDA=ON",
            facts,
        )
    kernels = ", ".join(f"{sm / 10:.1f}" for sm in sorted(cuda["architectures"]))
    built = f"in this build, for compute capability {kernels}"
    if error is None:
        device = cuda["devices"][0]
        size = gib(device["memory_bytes"])
        name = f"{device['name']} (compute {device['sm'] / 10:.1f}, {size})"
        message = f"{built}; device 'auto' takes the GPU: {name}, CUDA up to {cuda['driver']}"
        return Finding("software", "cuda backend", PASS, message, facts=facts)
    if not hardware and not cuda["devices"]:
        message = f"{built}; no GPU is here, so policies run on the CPU"
        return Finding("software", "cuda backend", PASS, message, facts=facts)
    why, _, remedy = error.partition(". ")
    return _warn(
        f"{built}, and cannot be used: {why}. Policies run on the CPU",
        remedy or "use device='cpu', or a GPU of compute capability 8.0 or later",
        facts,
    )


def _warn(message: str, remedy: str, facts: dict[str, Any]) -> Finding:
    return Finding("software", "cuda backend", WARN, message, remedy, facts)

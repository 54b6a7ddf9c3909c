"""Which GPU, in which state: what a number depends on beside benchmarks.conditions."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

_ASKED = (
    "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit",
    "temperature.gpu", "pstate", "ecc.mode.current", "persistence_mode",
)  # fmt: skip


def smi() -> dict[str, str]:
    """What nvidia-smi says of the first GPU; nothing where it is missing (Jetson) or refuses."""
    if not shutil.which("nvidia-smi"):
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader", "-i", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(_ASKED, values, strict=True)) if len(values) == len(_ASKED) else {}


def describe() -> dict[str, Any]:
    """The current CUDA device. Raises RuntimeError where torch finds none."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA device")
    p = torch.cuda.get_device_properties(0)
    return {
        "name": p.name,
        "sm": 10 * p.major + p.minor,
        "processors": p.multi_processor_count,
        "memory_mib": p.total_memory / 2**20,
        "l2_mib": p.L2_cache_size / 2**20,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "smi": smi(),
    }


def slug(name: str) -> str:
    """A file name for a GPU, like nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")

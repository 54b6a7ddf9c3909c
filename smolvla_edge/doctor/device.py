"""The name under which measurements of this kind of machine are kept."""

from __future__ import annotations

import os
import re

from smolvla_edge.doctor.cpu import CpuFacts
from smolvla_edge.doctor.gpu import GpuFacts


def device_name(cpu: CpuFacts, gpu: GpuFacts) -> str:
    """Lower case words with dashes: the board or CPU, its cores, and the GPU if there is one."""
    words = [cpu.board or cpu.model, f"{os.cpu_count() or 1}core"]
    words += [str(device["name"]) for device in gpu.devices[:1]]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")

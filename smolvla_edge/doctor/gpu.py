"""NVIDIA GPUs: what the driver sees, and why it may see nothing."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smolvla_edge.doctor.finding import PASS, WARN, Finding, gib
from smolvla_edge.doctor.process import Run
from smolvla_edge.doctor.tree import Tree

_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_VENDOR, _DISPLAY = "0x10de", "0x03"


@dataclass(frozen=True)
class GpuFacts:
    """hardware: where a GPU shows whether or not a driver works ("PCI", "Tegra").

    driver: the kernel module's version. cuda: the newest CUDA that the driver runs. problem: why
    there are no devices: "absent" (no libcuda), the name of a CUDA error, or how the probe ended.
    """

    devices: tuple[Mapping[str, Any], ...] = ()
    hardware: tuple[str, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    problem: str = ""
    code: int = 0
    smi: str = field(default="")  # what nvidia-smi said of itself: a driver version or a problem


def read_gpu(tree: Tree, run: Run) -> GpuFacts:
    probed = run([sys.executable, "-I", str(Path(__file__).with_name("cuda_probe.py"))])
    try:
        found = json.loads(probed.out) if not probed.problem else {}
    except ValueError:
        found = {}
    if not isinstance(found, dict) or "devices" not in found:
        found = {"problem": probed.problem or "the probe gave no answer", "devices": []}
    smi = run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    version = re.search(r"\d+(\.\d+)+", tree.text("/proc/driver/nvidia/version") or "")
    return GpuFacts(
        devices=tuple(found["devices"]),
        hardware=tuple(_hardware(tree)),
        driver=version[0] if version else None,
        cuda=found.get("cuda"),
        problem=str(found.get("problem", "")),
        code=int(found.get("code", 0)),
        smi=smi.problem if smi.absent else smi.last_line or smi.problem,
    )


def _hardware(tree: Tree) -> list[str]:
    found = []
    for device in tree.glob("/sys/bus/pci/devices/*"):
        kind = tree.text(f"{device}/class") or ""
        if tree.text(f"{device}/vendor") == _VENDOR and kind.startswith(_DISPLAY):
            found.append(f"PCI {device.rsplit('/', 1)[-1]}")
    if tree.exists("/etc/nv_tegra_release"):
        found.append("Tegra")
    return found


def check_gpu(f: GpuFacts) -> Finding:
    facts = {
        "devices": [dict(device) for device in f.devices],
        "hardware": list(f.hardware),
        "driver": f.driver,
        "cuda": f.cuda,
        "problem": f.problem,
        "nvidia_smi": f.smi,
    }
    if f.devices:
        names = ", ".join(
            f"{device['name']} (compute {device['capability']}, {gib(device['memory'])})"
            for device in f.devices
        )
        driver = f"driver {f.driver or 'of unknown version'}, CUDA up to {f.cuda or 'unknown'}"
        return Finding("machine", "gpu", PASS, f"{names}; {driver}", facts=facts)
    expected = f.hardware or ((f"driver {f.driver}",) if f.driver else ())
    nothing = f.problem in ("", "absent") or f.code == _NO_DEVICE
    if not expected and nothing:
        message = "no NVIDIA GPU, and none is needed: the policy runs on the CPU"
        return Finding("machine", "gpu", PASS, message, facts=facts)
    seen = f"{', '.join(expected)} is there, and " if expected else ""
    return Finding(
        "machine",
        "gpu",
        WARN,
        f"{seen}CUDA does not see a GPU: {_reason(f)}. The policy runs on the CPU all the same",
        _remedy(f),
        facts,
    )


def _reason(f: GpuFacts) -> str:
    if f.problem == "absent":
        return "libcuda.so.1 is not installed"
    return f.problem or "it counts no devices"


def _remedy(f: GpuFacts) -> str:
    if f.problem == "absent":
        return (
            "in a container: docker run --gpus all (Jetson: --runtime nvidia); else install "
            "NVIDIA's driver. Nothing to do if the GPU is not wanted"
        )
    if "803" in f.problem or f.code in (803, 804):
        return "libcuda and the kernel module are of different versions: reboot after the update"
    return (
        f"nvidia-smi says: {f.smi or 'nothing'}. Check the driver there first; then permissions of "
        "/dev/nvidia* and CUDA_VISIBLE_DEVICES"
    )

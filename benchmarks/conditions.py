"""What a number of a benchmark depends on: the machine, the software, the moment."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

# The CPU features that decide which kernels can run.
_FEATURES = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx_vnni", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _cpu() -> dict[str, Any]:
    text = _read("/proc/cpuinfo") or ""
    found = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", text, flags=re.MULTILINE))
    flags = set((found.get("flags") or found.get("Features") or "").split())
    return {
        "model": found.get("model name") or found.get("Model") or platform.processor() or "?",
        "vendor": found.get("vendor_id"),
        "family": found.get("cpu family"),
        "model_number": found.get("model"),
        "stepping": found.get("stepping"),
        "features": [name for name in _FEATURES if name in flags],
        "hypervisor": "hypervisor" in flags,
    }


def _cgroup_quota() -> str:
    unified = _read("/sys/fs/cgroup/cpu.max")
    if unified is not None:
        return unified
    quota = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return f"{quota} {period}" if quota and period else "not exposed"


def _memory_mib() -> float:
    match = re.search(r"MemTotal:\s*(\d+)", _read("/proc/meminfo") or "")
    return int(match.group(1)) / 1024 if match else float("nan")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def collect(root: Path, module: str) -> dict[str, Any]:
    """Everything that is known before the first run of `python -m module`."""
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    # The report that this run replaces is no change of what is measured.
    status = _git(root, "status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m", module, *map(shlex.quote, sys.argv[1:])]),
        "commit": _git(root, "rev-parse", "HEAD")
        or _read(str(root / "build" / "gpu-carry" / "commit"))  # tools/gpu/carry.py notes it
        or "none",
        "uncommitted_changes": bool(status) if status is not None else None,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "cgroup_cpu_quota": _cgroup_quota(),
        "governor": governor or "not exposed",
        "memory_mib": _memory_mib(),
        "load_average_before": list(os.getloadavg()),
        "kernel": platform.release(),
        "system": _system(),
        "python": platform.python_version(),
    }


def _system() -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read("/etc/os-release") or "", re.MULTILINE)
    return match.group(1) if match else platform.system()


def device_name(conditions: dict[str, Any]) -> str:
    """A file name for this kind of machine, like amd-epyc-family26-model2-2core."""
    cpu = conditions["cpu"]
    name = f"{cpu['model']}"
    if cpu["family"]:
        name += f" family{cpu['family']} model{cpu['model_number']}"
    name += f" {conditions['cores']}core"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def noise_report(load_before: float, cores: int, results: list[dict[str, Any]]) -> list[str]:
    """Sentences about everything that made this run less than quiet; empty when it was quiet."""
    notes = []
    if load_before > 0.3 * cores:
        notes.append(f"load average {load_before:.2f} before the run on {cores} cores")
    for result in results:
        where = f"{result['engine']}, {result['cameras']} camera(s), {result['language']}"
        if result["disturbed"]:
            used = "and they are in the medians" if result["disturbed_used"] else "left out"
            notes.append(
                f"{where}: {result['disturbed']} of {result['samples']} samples disturbed by "
                f"other processes, {used}"
            )
        if result["spread"] > 0.10:
            notes.append(f"{where}: p10 to p90 spans {result['spread']:.0%} of the median")
        if max(result["all_stolen"]) > 0.02:
            notes.append(f"{where}: the hypervisor took up to {max(result['all_stolen']):.0%}")
    return notes

"""Which CPU this is, which kernels run on it, and what another one would give."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from smolvla_edge.doctor.finding import PASS, WARN, Finding
from smolvla_edge.doctor.tree import Tree

FORCING = ("SMOLVLA_FORCE_ISA", "SMOLVLA_FORCE_KERNEL")

# What kernels of this package, or of a later version of it, could use.
_FEATURES = (
    *("fma", "avx2", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)

# What one instruction of a kernel set does, best first. (The core's table does not rank the sets: a
# set has only the operations that it improves.) Of a set that is not here nothing is claimed.
_GIVES = {
    "avx512_bf16": "16 multiply-adds an instruction, 32 in bfloat16",
    "avx512_vnni": "16 multiply-adds an instruction, 64 of integers",
    "avx512": "16 multiply-adds an instruction",
    "avx_vnni": "8 multiply-adds an instruction, 32 of integers",
    "avx2": "8 multiply-adds an instruction",
    "neon_bf16": "4 multiply-adds an instruction, in bfloat16 without widening",
    "neon_i8mm": "4 multiply-adds an instruction, 32 of integers",
    "neon_dotprod": "4 multiply-adds an instruction, 16 of integers",
    "neon": "4 multiply-adds an instruction",
    "scalar": "plain C++",
}
_SLOW = frozenset({"scalar"})


@dataclass(frozen=True)
class CpuFacts:
    """model: as the kernel names it. board: the device tree's name, for boards that have one."""

    model: str
    machine: str
    features: tuple[str, ...]
    board: str | None = None


def read_cpu(tree: Tree) -> CpuFacts:
    text = tree.text("/proc/cpuinfo") or ""
    found = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", text, flags=re.MULTILINE))
    model = found.get("model name") or found.get("Model") or _arm_core(found)
    features = found.get("flags") or found.get("Features") or ""
    return CpuFacts(
        model=model or platform.processor() or "a CPU that /proc/cpuinfo does not name",
        machine=platform.machine(),
        features=tuple(features.split()),
        board=tree.text("/proc/device-tree/model"),
    )


# Arm's own part numbers; other implementers count for themselves.
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse N1",
    "0xd40": "Neoverse V1",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse N2",
    "0xd4f": "Neoverse V2",
}


def _arm_core(cpuinfo: Mapping[str, str]) -> str | None:
    part = cpuinfo.get("CPU part")
    if part is None:
        return None
    if cpuinfo.get("CPU implementer") == "0x41" and part in _ARM_PARTS:
        return f"Arm {_ARM_PARTS[part]}"
    return f"an Arm CPU (implementer {cpuinfo.get('CPU implementer', '?')}, part {part})"


def check_cpu(
    cpu: CpuFacts,
    chosen: str,
    table: Iterable[Mapping[str, Any]],
    environment: Mapping[str, str],
) -> Finding:
    """`chosen` and `table` are the core's cpu_info()["isa"] and kernel_table()."""
    rows = list(table)
    here = list(dict.fromkeys(row["isa"] for row in rows if row["supported"]))
    missing = {row["isa"]: row["needs"] for row in rows if row["isa"] not in here}
    forced = {name: environment[name] for name in FORCING if environment.get(name)}
    facts = {
        "model": cpu.model,
        "machine": cpu.machine,
        "board": cpu.board,
        "isa": chosen,
        "supported": here,
        "not_supported": missing,
        "forced": forced,
    }
    name = f"{cpu.board}: {cpu.model}" if cpu.board else cpu.model
    ranked = list(_GIVES)
    above = ranked[: ranked.index(chosen)] if chosen in ranked else []
    better = [f"{isa} (needs {missing[isa]})" for isa in above if isa in missing]
    features = [feature for feature in _FEATURES if feature in cpu.features]
    facts["features"] = features
    has = f" with {' '.join(features)}" if features else ""
    message = f"{name}, {cpu.machine}{has}; kernels {chosen}{_gives(chosen)}"
    if forced:
        settings = " and ".join(f"{variable}={value}" for variable, value in forced.items())
        return Finding(
            "machine",
            "cpu",
            WARN,
            f"{message}, because of {settings}",
            f"without it, the best of {', '.join(here)} is chosen: unset {' '.join(forced)}",
            facts,
        )
    if chosen in _SLOW:
        return Finding(
            "machine",
            "cpu",
            WARN,
            f"{message}: correct, and many times slower than the others",
            f"a CPU with {' or '.join(better)} runs faster kernels; 'smolvla-edge inspect "
            "--kernels' lists what this build has"
            if better
            else "this build has no faster kernels for this kind of CPU",
            facts,
        )
    best = f"; a CPU with {' or '.join(better)} would do more at once" if better else ""
    message += best or ", the best this build has"
    return Finding("machine", "cpu", PASS, message, facts=facts)


def _gives(isa: str) -> str:
    return f" ({_GIVES[isa]})" if isa in _GIVES else ""

"""Whether the model fits into memory, and whether the system swaps."""

from __future__ import annotations

import re
from dataclasses import dataclass

from smolvla_edge.doctor.cgroup import Limits
from smolvla_edge.doctor.finding import FAIL, PASS, WARN, Finding, gib
from smolvla_edge.doctor.need import Need
from smolvla_edge.doctor.tree import Tree

_SWAPPED = 0.05  # of the memory: less is what a system puts aside once


@dataclass(frozen=True)
class MemoryFacts:
    """Bytes; None where the kernel does not say. `limit` and `limit_used` are the container's."""

    total: int | None
    available: int | None
    swap_total: int = 0
    swap_used: int = 0
    limit: int | None = None
    limit_used: int = 0
    process: int = 0  # of this Python with everything imported, as any that runs a policy has

    @property
    def left_in_container(self) -> int | None:
        return None if self.limit is None else max(self.limit - self.limit_used, 0)

    @property
    def free(self) -> int | None:
        """What a new process may still take: of the machine, cut by the container's limit."""
        known = [n for n in (self.available, self.left_in_container) if n is not None]
        return min(known, default=None)


def read_memory(tree: Tree, limits: Limits) -> MemoryFacts:
    info = _kilobytes(tree.text("/proc/meminfo"))
    status = _kilobytes(tree.text("/proc/self/status"))
    total, free = info.get("SwapTotal", 0), info.get("SwapFree", 0)
    return MemoryFacts(
        total=info.get("MemTotal"),
        available=info.get("MemAvailable", info.get("MemFree")),
        swap_total=total,
        swap_used=max(total - free, 0),
        limit=limits.memory,
        limit_used=limits.memory_used,
        process=status.get("VmRSS", 0),
    )


def _kilobytes(text: str | None) -> dict[str, int]:
    """{"MemTotal": bytes, ...} of lines "MemTotal:  16 kB"."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text or "", re.MULTILINE)
    return {name: int(value) << 10 for name, value in found}


def check_memory(f: MemoryFacts, need: Need) -> Finding:
    """Certainly too little fails; less than the engine's upper bound warns."""
    least = need.weights + f.process
    most = least + need.buffers
    facts = {
        "total": f.total,
        "available": f.available,
        "limit": f.limit,
        "limit_used": f.limit_used,
        "weights": need.weights,
        "buffers_bound": need.buffers,
        "process": f.process,
    }
    needs = (
        f"{need.what} takes {gib(need.weights)} of packed weights, at most {gib(need.buffers)} of "
        f"activations, and {gib(f.process)} for Python"
    )
    if f.free is None:
        message = f"{needs}; how much is free is not readable (/proc/meminfo)"
        return Finding("machine", "memory", PASS, message, facts=facts)
    where = "" if f.limit is None else f", the container's limit is {gib(f.limit)}"
    of = "" if f.total is None else f" of {gib(f.total)}"
    message = f"{gib(f.free)} free{of}{where}; {needs}"
    more = (
        f"raise the container's memory limit by {gib(most - f.free)} (docker run --memory=..., "
        "MemoryMax= of a service)"
        if f.free == f.left_in_container
        else "close other programs (on a board: the desktop, sudo systemctl isolate "
        "multi-user.target), or use a machine with more memory"
    )
    if f.free < least:
        message += ". It does not fit: loading would swap or be killed"
        return Finding("machine", "memory", FAIL, message, more, facts)
    if f.free < most:
        message += ". It may not fit"
        return Finding("machine", "memory", WARN, message, more, facts)
    return Finding("machine", "memory", PASS, message, facts=facts)


def check_swap(f: MemoryFacts) -> Finding:
    facts = {"swap_total": f.swap_total, "swap_used": f.swap_used}
    if f.total is None:
        return Finding("machine", "swap", PASS, "not readable (/proc/meminfo)", facts=facts)
    if f.swap_used > _SWAPPED * f.total:
        return Finding(
            "machine",
            "swap",
            WARN,
            f"{gib(f.swap_used)} of {gib(f.swap_total)} in use: a policy whose pages are swapped "
            "out answers late",
            "free memory, then bring everything back: sudo swapoff -a && sudo swapon -a",
            facts,
        )
    message = f"{gib(f.swap_used)} of {gib(f.swap_total)} in use" if f.swap_total else "none"
    return Finding("machine", "swap", PASS, message, facts=facts)

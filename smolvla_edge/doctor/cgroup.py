"""What a container or a service may use: CPU quota and memory limit of the control groups.

A limit may stand at any level between our own group and the root, and the strictest holds. In a
container the root of the mount is usually our own group; on the host, and in containers without a
namespace of their own, the group is a folder below it. Both versions of the interface are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from smolvla_edge.doctor.tree import Tree

_MOUNT = "/sys/fs/cgroup"
_UNIFIED = ""  # version 2: one tree for all controllers
_NO_LIMIT_V1 = 1 << 60  # version 1 writes a huge number where version 2 writes "max"


@dataclass(frozen=True)
class Limits:
    """cpus: CPUs' worth of time; None: no limit. memory and memory_used: bytes of the level with
    the least left (reclaimable file pages are not counted as used)."""

    cpus: float | None = None
    memory: int | None = None
    memory_used: int = 0


def read_limits(tree: Tree) -> Limits:
    """The strictest limits on this process. Nothing readable is the same as no limit."""
    groups, mounts = _own_groups(tree), _mounts(tree)
    quotas = [
        quota
        for controller in (_UNIFIED, "cpu")
        for level in _levels(controller, groups, mounts)
        if (quota := _quota(tree, level)) is not None
    ]
    memories = [
        memory
        for controller in (_UNIFIED, "memory")
        for level in _levels(controller, groups, mounts)
        if (memory := _memory(tree, level)) is not None
    ]
    limit, used = min(memories, key=lambda pair: pair[0] - pair[1], default=(None, 0))
    return Limits(min(quotas, default=None), limit, used)


def _own_groups(tree: Tree) -> dict[str, str]:
    """{controller: our group}, from lines "4:cpu,cpuacct:/path"; the unified tree has none."""
    groups = {}
    for line in (tree.text("/proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                groups[controller] = parts[2]
    return groups


def _mounts(tree: Tree) -> dict[str, tuple[str, str]]:
    """{controller: (mount point, group that is mounted there)}."""
    mounts: dict[str, tuple[str, str]] = {}
    for line in (tree.text("/proc/self/mountinfo") or "").splitlines():
        before, dash, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if not dash or len(fields) < 5 or not kind:
            continue
        place = (_unescaped(fields[4]), _unescaped(fields[3]))
        if kind[0] == "cgroup2":
            mounts[_UNIFIED] = place
        elif kind[0] == "cgroup":
            for controller in kind[-1].split(","):
                mounts.setdefault(controller, place)
    return mounts


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), path)


def _levels(
    controller: str, groups: dict[str, str], mounts: dict[str, tuple[str, str]]
) -> list[str]:
    """Our group's folder and those above it, up to the mount point."""
    usual = _MOUNT if controller == _UNIFIED else f"{_MOUNT}/{controller}"
    mount, root = mounts.get(controller, (usual, "/"))
    group = groups.get(controller, "/")
    if root != "/" and (group + "/").startswith(root + "/"):
        group = group[len(root) :]
    names = [name for name in group.split("/") if name]
    if ".." in names:  # outside of what is mounted here
        names = []
    return [mount.rstrip("/") + "".join(f"/{n}" for n in names[:i]) for i in range(len(names) + 1)]


def _quota(tree: Tree, level: str) -> float | None:
    words = (tree.text(f"{level}/cpu.max") or "").split()
    if len(words) != 2:
        words = [tree.text(f"{level}/cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    try:
        quota, period = int(words[0]), int(words[1])
    except ValueError:  # "max", or nothing
        return None
    return quota / period if quota > 0 and period > 0 else None


def _memory(tree: Tree, level: str) -> tuple[int, int] | None:
    """(limit, used) in bytes."""
    for limit_file, used_file, reclaimable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = tree.integer(f"{level}/{limit_file}")
        if limit is None or not 0 <= limit < _NO_LIMIT_V1:
            continue
        used = tree.integer(f"{level}/{used_file}") or 0
        stat = tree.text(f"{level}/memory.stat") or ""
        cached = re.search(rf"^{reclaimable} (\d+)$", stat, re.MULTILINE)
        return limit, max(used - (int(cached[1]) if cached else 0), 0)
    return None

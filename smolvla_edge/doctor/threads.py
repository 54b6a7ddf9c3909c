"""How many CPUs this process may use, and whether others use them too."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from smolvla_edge.doctor.cgroup import Limits
from smolvla_edge.doctor.finding import PASS, WARN, Finding
from smolvla_edge.doctor.tree import Tree

_BUSY = 0.75  # of the CPUs: above it the engine's threads wait for somebody
_SLACK = 0.01  # quotas are written with a few digits


@dataclass(frozen=True)
class ThreadFacts:
    """online: CPUs of the machine. affinity: those this process may run on. quota: CPUs' worth of
    time, None without a limit. threads: what the engine starts. asked: by --threads."""

    online: int
    affinity: int
    quota: float | None
    threads: int
    asked: bool = False
    load: float | None = None  # processes that want to run, mean of the last minute


def read_threads(tree: Tree, limits: Limits, threads: int, asked: bool) -> ThreadFacts:
    try:
        affinity = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not Linux
        affinity = os.cpu_count() or 1
    load = re.match(r"\d+\.?\d*", tree.text("/proc/loadavg") or "")
    return ThreadFacts(
        online=max(os.cpu_count() or 1, affinity),
        affinity=affinity,
        quota=limits.cpus,
        threads=threads,
        asked=asked,
        load=float(load[0]) if load else None,
    )


def check_threads(f: ThreadFacts) -> Finding:
    facts = {
        "online": f.online,
        "affinity": f.affinity,
        "quota": f.quota,
        "threads": f.threads,
    }
    quota = "no CPU quota" if f.quota is None else f"a quota of {f.quota:g} CPUs"
    allowed = f"{f.affinity} of {f.online} CPUs allowed, {quota}"
    message = f"{f.threads} thread{'s' if f.threads != 1 else ''}: {allowed}"

    def warn(why: str, remedy: str) -> Finding:
        return Finding("machine", "threads", WARN, f"{message}. {why}", remedy, facts)

    if f.quota is not None and f.threads > f.quota + _SLACK:
        whole = max(int(f.quota + _SLACK), 1)
        return warn(
            "More threads than the quota pays for: the system stops all of them for a part of "
            "every period, which shows as jitter",
            f"use {whole} (--threads {whole}, threads={whole}), or raise the quota to a whole "
            f"number (docker run --cpus={f.threads}, CPUQuota={f.threads}00% of a service)",
        )
    if f.threads > f.affinity:
        return warn(
            "More threads than CPUs take turns on them",
            f"leave --threads out, or ask for at most {f.affinity}",
        )
    if f.threads == 1 and f.online > 1:
        return warn("One core does all the work", _more_than_one(f))
    return Finding("machine", "threads", PASS, message, facts=facts)


def _more_than_one(f: ThreadFacts) -> str:
    if f.affinity > 1 and (f.quota is None or f.quota >= 2):
        return "leave --threads out: more CPUs are allowed than were asked for"
    if f.affinity == 1:
        return (
            "let the process run on more CPUs: docker run --cpuset-cpus=0-"
            f"{f.online - 1}, CPUAffinity= of a service, or no taskset before the command"
        )
    return f"raise the quota: docker run --cpus={f.online}, CPUQuota={f.online}00% of a service"


def check_load(f: ThreadFacts) -> Finding:
    facts = {"load": f.load, "affinity": f.affinity}
    if f.load is None:
        message = "not readable (/proc/loadavg): whether others use the CPUs is not known"
        return Finding("machine", "load", PASS, message, facts=facts)
    message = f"{f.load:.2f} processes wanted a CPU in the last minute, {f.online} CPUs"
    if f.load > _BUSY * f.online:
        return Finding(
            "machine",
            "load",
            WARN,
            f"{message}: calls are slower and less steady than on a quiet machine",
            "see who computes with 'top'; give the policy CPUs of its own (taskset -c 2,3 ...), or "
            "fewer threads than there are CPUs",
            facts,
        )
    return Finding("machine", "load", PASS, message, facts=facts)

"""All checks in the order of the report. What they mean is decided in their own files; here it is
only made sure that each gets its facts, and that none of them can end the report.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from smolvla_edge.backends.native import load_core
from smolvla_edge.doctor import (
    backends,
    clock,
    cpu,
    cuda_backend,
    disk,
    gpu,
    jetson,
    memory,
    packages,
    policy,
    software,
    threads,
)
from smolvla_edge.doctor.cgroup import Limits, read_limits
from smolvla_edge.doctor.device import device_name
from smolvla_edge.doctor.finding import FAIL, PASS, SECTIONS, WARN, Finding
from smolvla_edge.doctor.need import Need, model_need, reference_need
from smolvla_edge.doctor.process import run
from smolvla_edge.doctor.torch_wheel import check_torch_wheel
from smolvla_edge.doctor.tree import Tree
from smolvla_edge.errors import SmolVLAEdgeError

# Called with what is being done; the context gives a function of (done, in all).
Busy = Callable[[str], AbstractContextManager[Callable[..., None]]]


def _silent(what: str) -> AbstractContextManager[Callable[..., None]]:
    return nullcontext(lambda *_: None)


def examine(
    path: str | None = None,
    *,
    asked_threads: int | None = None,
    options: Mapping[str, Any] | None = None,
    busy: Busy = _silent,
) -> list[Finding]:
    """Look at this machine, and at the policy at `path` when one is named; findings by section.

    `options` are keyword arguments of `policy.open_policy`. Takes seconds: backends are run, and a
    bundle's files are read. Raises nothing; what cannot be examined is a finding too.
    """
    notes = _Notes()
    tree = Tree()
    core = notes.keep("software", "core", partial(_find_core, notes))
    processor = notes.keep("machine", "cpu", partial(cpu.read_cpu, tree))
    isas = notes.keep("machine", "cpu", partial(_examine_cpu, notes, processor, core)) or []
    limits = notes.keep("machine", "limits", partial(read_limits, tree)) or Limits()
    used = asked_threads or _usual_threads(core, limits)
    notes.keep("machine", "threads", partial(_threads, tree, limits, used, asked_threads))

    opened = notes.keep("policy", "policy", partial(_open, notes, path, options or {}, busy))
    need = notes.keep("machine", "memory", partial(_need, opened, core, used))
    if need is not None:
        notes.keep("machine", "memory", partial(_memory, tree, limits, need))
    notes.keep("machine", "clock", partial(_clock, tree))
    graphics = notes.keep("machine", "gpu", partial(gpu.read_gpu, tree, run)) or gpu.GpuFacts()
    notes.keep("machine", "gpu", partial(gpu.check_gpu, graphics))
    board = notes.keep("machine", "jetson", partial(jetson.read_jetson, tree, run))
    if board is not None:
        notes.keep("machine", "jetson", partial(jetson.check_jetson, board))
    if need is not None:
        notes.keep("machine", "disk", partial(_disk, need))

    notes.keep("software", "system", _system)
    for extra in (None, *packages.EXTRAS):
        notes.keep("software", f"extra {extra}", partial(_packages, extra))
    if opened is not None and opened.bundle is not None and processor is not None:
        device = device_name(processor, graphics)
        notes.keep("policy", "presets", partial(policy.check_presets, opened.bundle, device))

    cuda = notes.keep("software", "cuda backend", partial(_cuda, notes, core, graphics)) or {}
    usable = cuda.get("error", "") is None and not cuda["emulated"]
    work = partial(_run, core, isas, usable, asked_threads, busy)
    ran = notes.keep("backends", "backends", work) or []
    torch: Mapping[str, Any] = next((one.facts for one in ran if one.name == "torch"), {})
    wheel = partial(check_torch_wheel, torch, graphics, board is not None)
    notes.keep("software", "torch and GPU", wheel)
    notes.keep("backends", "backends", partial(backends.check_backends, ran))
    return sorted(notes.findings, key=lambda finding: SECTIONS.index(finding.section))


class _Notes:
    """The findings so far."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def keep(self, section: str, check: str, what: Callable[[], Any]) -> Any:
        """Call `what`, keep the Finding or list of them that it returns, and return that.

        A fault of ours becomes a finding, and None is returned.
        """
        try:
            result = what()
        except Exception as fault:  # a doctor that falls ill tells nobody anything
            what_failed = f"could not be examined: {type(fault).__name__}: {fault}"
            remedy = "an error inside smolvla-edge doctor: please report this line"
            facts = {"internal": True}
            # A policy or a backend that was not examined is not one that is known to work.
            status = FAIL if section in ("policy", "backends") else WARN
            self.findings.append(Finding(section, check, status, what_failed, remedy, facts))
            return None
        found = result if isinstance(result, list) else [result]
        self.findings += [item for item in found if isinstance(item, Finding)]
        return result


def _find_core(notes: _Notes) -> Any:
    try:
        core = load_core()
    except SmolVLAEdgeError as cause:
        remedy = "pip install --force-reinstall --no-cache-dir . in the source folder"
        notes.findings.append(Finding("software", "core", FAIL, str(cause), remedy))
        return None
    notes.findings.append(Finding("software", "core", PASS, f"the C++ core {core.__file__}"))
    return core


def _examine_cpu(notes: _Notes, processor: cpu.CpuFacts | None, core: Any) -> list[str]:
    """The instruction sets that this CPU and this build have."""
    if processor is None or core is None:
        return []
    try:
        # A table asked for by name is there whatever the environment forces.
        table = [dict(row) for row in core.kernel_table("scalar")]
        chosen = core.cpu_info()["isa"]
    except SmolVLAEdgeError as cause:
        remedy = f"unset {' '.join(cpu.FORCING)}"
        notes.findings.append(Finding("machine", "cpu", FAIL, str(cause), remedy))
        return []
    notes.findings.append(cpu.check_cpu(processor, chosen, table, os.environ))
    return list(dict.fromkeys(row["isa"] for row in table if row["supported"]))


def _usual_threads(core: Any, limits: Limits) -> int:
    """What the engine starts when nobody says how many; a guess where it cannot be asked."""
    try:
        return int(core.cpu_info()["threads"])
    except (AttributeError, SmolVLAEdgeError):
        return max(int(limits.cpus or os.cpu_count() or 1), 1)


def _threads(tree: Tree, limits: Limits, used: int, asked: int | None) -> list[Finding]:
    facts = threads.read_threads(tree, limits, used, asked is not None)
    return [threads.check_threads(facts), threads.check_load(facts)]


def _open(
    notes: _Notes, path: str | None, options: Mapping[str, Any], busy: Busy
) -> policy.Opened | None:
    if path is None:
        notes.keep("policy", "policy", policy.check_no_policy)
        return None
    with busy(f"reading {path}"):
        opened, finding = policy.open_policy(path, **options)
    notes.findings.append(finding)
    if opened is None:
        return None
    if opened.bundle is not None:
        with busy(f"checking the files of {path}") as report:
            notes.keep("policy", "files", partial(policy.check_files, opened.bundle, report))
    notes.keep("policy", "normalisation", partial(policy.check_normalization, opened.contract))
    notes.keep("policy", "tokenizer", partial(policy.check_tokenizer, opened))
    return opened


def _need(opened: policy.Opened | None, core: Any, used: int) -> Need | None:
    if core is None:
        return None
    if opened is None:
        return reference_need(core, used)
    return model_need(opened.path.resolve().name, opened.model, opened.tensors, core, used)


def _memory(tree: Tree, limits: Limits, need: Need) -> list[Finding]:
    facts = memory.read_memory(tree, limits)
    return [memory.check_memory(facts, need), memory.check_swap(facts)]


def _clock(tree: Tree) -> list[Finding]:
    facts = clock.read_clock(tree)
    return [clock.check_clock(facts), clock.check_temperature(facts)]


def _disk(need: Need) -> Finding:
    return disk.check_disk(disk.read_disk(disk.cache_folder()), need.weights)


def _system() -> list[Finding]:
    facts = software.read_software()
    return [software.check_system(facts), software.check_python(facts)]


def _packages(extra: str | None) -> Finding:
    if extra is None:
        return packages.check_required(packages.installed_version)
    return packages.check_extra(extra, packages.installed_version)


def _cuda(notes: _Notes, core: Any, graphics: gpu.GpuFacts) -> dict[str, Any]:
    if core is None:
        return {}
    found = cuda_backend.read_cuda(run)
    notes.findings.append(cuda_backend.check_cuda(found, graphics))
    return found


def _run(
    core: Any, isas: list[str], cuda: bool, asked: int | None, busy: Busy
) -> list[backends.Ran]:
    if core is None:
        return []
    with_torch = packages.installed_version("torch") is not None
    names = backends.jobs(isas, with_torch, os.environ, with_cuda=cuda)
    with busy("running a tiny policy on each backend") as report:
        return backends.run_all(names, asked, report)

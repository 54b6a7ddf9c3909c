"""Runs a tiny policy on every backend that is called available, and compares the actions.

Native kernels of every instruction set must give the same bytes, in float32 and in bfloat16; torch
and a GPU, which add in another order, the same values within the tolerances that `verify` uses.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smolvla_edge.doctor.cpu import FORCING
from smolvla_edge.doctor.finding import FAIL, PASS, WARN, Finding
from smolvla_edge.doctor.process import Outcome, run

TOLERANCES = {"float32": 2e-5, "bfloat16": 5e-2}  # of the largest action, as in `verify`
_ON_CUDA = "native on cuda"
_SECONDS = 120.0  # the first import of torch on a board's card takes tens of seconds
# Our own path, before anything but the built-in sys is imported: the child must find what we found,
# and no json.py of the working directory.
_CHILD = """import sys
sys.path[:] = sys.argv.pop().split(chr(0x1F))
from smolvla_edge.doctor.backend_run import main
main()"""
_SEPARATOR = chr(0x1F)  # in no path that anybody uses


@dataclass(frozen=True)
class Ran:
    """What one backend did.

    actions: {arithmetic: float32 [2, chunk, action_dim], model space and robot units}; empty when
    it did not come to an end, for `problem`.
    """

    name: str
    backend: str
    actions: Mapping[str, np.ndarray]
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def jobs(
    isas: Iterable[str], with_torch: bool, environment: Mapping[str, str], with_cuda: bool = False
) -> list[str]:
    """Names of what is run: "native" only when the environment forces a choice of its own."""
    forced = any(environment.get(name) for name in FORCING)
    names = ["native (as forced)"] if forced else []
    # The reference of the others first.
    names += [f"native {isa}" for isa in sorted(isas, key=lambda isa: isa != "scalar")]
    return names + [_ON_CUDA] * with_cuda + ["torch"] * with_torch


def run_all(
    names: Sequence[str], threads: int | None, progress: Callable[[int, int], None]
) -> list[Ran]:
    """One process a name, one after the other. Raises OSError when there is no room for a tiny
    checkpoint in the temporary folder."""
    from smolvla_edge.synthetic import make_checkpoint

    results: list[Ran] = []
    with tempfile.TemporaryDirectory(prefix="smolvla-doctor-") as folder:
        checkpoint = make_checkpoint(Path(folder) / "tiny", "tiny")
        todo = list(names)
        while todo:
            name = todo.pop(0)
            progress(len(results), len(results) + len(todo) + 1)
            results.append(_run_one(name, checkpoint, Path(folder) / "out", threads))
            if name == "torch" and results[-1].facts.get("cuda_available"):
                todo.append("torch on cuda")
    return results


def _run_one(name: str, checkpoint: Path, folder: Path, threads: int | None) -> Ran:
    backend, _, rest = name.partition(" ")
    forced = rest == "(as forced)"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    job = {
        "checkpoint": str(checkpoint),
        "folder": str(folder),
        "backend": backend,
        "device": "cuda" if rest == "on cuda" else "cpu",
        "isa": "" if forced or backend != "native" or name == _ON_CUDA else rest,
        "threads": None if name == _ON_CUDA else threads,
    }
    environment = dict(os.environ)
    if not forced:
        for variable in FORCING:
            environment.pop(variable, None)
    command = [sys.executable, "-c", _CHILD, json.dumps(job), _SEPARATOR.join(sys.path)]
    outcome = run(command, seconds=_SECONDS, environment=environment)
    return _collect(name, backend, folder, outcome)


def _collect(name: str, backend: str, folder: Path, outcome: Outcome) -> Ran:
    if outcome.problem:
        said = f": {outcome.last_line}" if outcome.last_line else ""
        return Ran(name, backend, {}, problem=outcome.problem + said)
    try:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        actions = {
            file.stem: np.load(file, allow_pickle=False) for file in sorted(folder.glob("*.npy"))
        }
    except (OSError, ValueError) as cause:
        return Ran(name, backend, {}, problem=f"left no result: {cause}")
    return Ran(name, backend, actions, facts)


def check_backends(results: Sequence[Ran]) -> list[Finding]:
    """One finding for each backend. The scalar kernels are the reference of all others."""
    sound = [r for r in results if _is_on_cpu(r) and r.actions and _is_finite(r)]
    reference = next((r for r in sound if r.name == "native scalar"), sound[0] if sound else None)
    return [_check(result, reference) for result in results]


def _is_on_cpu(result: Ran) -> bool:
    """Whether every byte is decided: native kernels of the CPU."""
    return result.backend == "native" and result.name != _ON_CUDA


def _is_finite(result: Ran) -> bool:
    return all(np.isfinite(actions).all() for actions in result.actions.values())


def _check(result: Ran, reference: Ran | None) -> Finding:
    facts = {**result.facts, "problem": result.problem}
    if not result.actions:
        return _did_not_run(result, facts)
    took = _cost(result.facts)
    if not _is_finite(result):
        facts["problem"] = "NaN or infinity"
        return _broken(result, f"{took}: NaN or infinity among the actions", facts)
    if reference is None or reference is result:
        what = "the others are compared with it" if reference is result else "nothing to compare"
        return Finding("backends", result.name, PASS, f"{took}; {what}", facts=facts)
    errors = {
        arithmetic: _relative(actions, reference.actions.get(arithmetic))
        for arithmetic, actions in result.actions.items()
    }
    worst = max(errors, key=lambda arithmetic: errors[arithmetic] / TOLERANCES[arithmetic])
    error = errors[worst]
    if error == float("inf"):
        shape = result.actions[worst].shape
        return _broken(result, f"{took}: {reference.name} has no {worst} of shape {shape}", facts)
    facts["relative_error"] = error
    if not _is_on_cpu(result):
        message = f"{took}; {worst} actions within {error:.1e} of {reference.name}'s largest"
        if error > TOLERANCES[worst]:
            return _broken(result, f"{message}, more than {TOLERANCES[worst]:g}", facts)
        return Finding("backends", result.name, PASS, message, facts=facts)
    same = all(
        a.tobytes() == reference.actions[name].tobytes() for name, a in result.actions.items()
    )
    if not same:
        message = f"{took}; {worst} actions differ from {reference.name}'s by {error:.1e}"
        return _broken(result, f"{message} of the largest", facts)
    message = f"{took}; actions equal {reference.name}'s in every byte ({', '.join(errors)})"
    return Finding("backends", result.name, PASS, message, facts=facts)


def _cost(facts: Mapping[str, Any]) -> str:
    """What a backend said of itself, in words."""
    words = f"ran a tiny policy in {facts.get('ms', 0):.1f} ms"
    if "torch" in facts:
        words = f"torch {facts['torch']} {words}"
    if "threads" in facts:
        words += f" on {facts['threads']} threads"
    if "gflops" in facts:
        words += f", {facts['gflops']:.0f} float32 GFLOP/s a thread in registers"
    return words


def _relative(ours: np.ndarray, theirs: np.ndarray | None) -> float:
    """The largest error in model space and in robot units, each as a part of the largest value."""
    if theirs is None or ours.shape != theirs.shape:
        return float("inf")
    errors = []
    for mine, other in zip(ours, theirs, strict=True):
        error, largest = float(np.abs(mine - other).max()), float(np.abs(other).max())
        errors.append(error / largest if largest > 0 else error)
    return max(errors)


def _broken(result: Ran, message: str, facts: dict[str, Any]) -> Finding:
    remedy = (
        "do not use it for a robot; report this with the output of 'smolvla-edge doctor --json' "
        "and 'smolvla-edge inspect --kernels'"
    )
    return Finding("backends", result.name, FAIL, message, remedy, facts)


def _did_not_run(result: Ran, facts: dict[str, Any]) -> Finding:
    if result.name == _ON_CUDA:
        return Finding(
            "backends",
            result.name,
            FAIL,
            f"did not run, and device 'auto' would take it: {result.problem}",
            "use device='cpu' (--device cpu); if the GPU is free and this stays, report this line",
            facts,
        )
    if result.backend == "native":
        return Finding(
            "backends",
            result.name,
            FAIL,
            f"did not run: {result.problem}",
            "install again from source on this machine (pip install --force-reinstall "
            "--no-cache-dir .); if it stays, report this line",
            facts,
        )
    return Finding(  # an extra: the policy runs without it
        "backends",
        result.name,
        WARN,
        f"installed, and did not run: {result.problem}",
        "install torch again, in an environment of its own: pip install --force-reinstall "
        "'smolvla-edge[torch]' (Jetson: NVIDIA's wheel for your JetPack); nothing to do if verify "
        "and backend='torch' are not needed",
        facts,
    )

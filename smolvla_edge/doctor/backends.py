"""Runs a tiny policy on every backend that is called available, and compares the actions.

Native kernels of every instruction set must give the same bytes; torch, which adds in another
order, the same values within the tolerance that `verify` uses.
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

TOLERANCE = 2e-5  # of the largest action, as in `verify`
_SECONDS = 120.0  # the first import of torch on a board's card takes tens of seconds
_CHILD = "import sys, json; sys.path[:] = json.loads(sys.argv.pop()); " \
    "from smolvla_edge.doctor.backend_run import main; main()"  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """What one backend did. actions: float32 [2, chunk, action_dim], model space and robot units;
    None when it did not come to an end, for `problem`."""

    name: str
    backend: str
    actions: np.ndarray | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def jobs(isas: Iterable[str], with_torch: bool, environment: Mapping[str, str]) -> list[str]:
    """Names of what is run: "native" only when the environment forces a choice of its own."""
    forced = any(environment.get(name) for name in FORCING)
    names = ["native (as forced)"] if forced else []
    # The reference of the others first.
    names += [f"native {isa}" for isa in sorted(isas, key=lambda isa: isa != "scalar")]
    return names + (["torch"] if with_torch else [])


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
        "isa": "" if forced or backend != "native" else rest,
        "threads": threads,
    }
    environment = dict(os.environ)
    if not forced:
        for variable in FORCING:
            environment.pop(variable, None)
    command = [sys.executable, "-c", _CHILD, json.dumps(job), json.dumps(sys.path)]
    outcome = run(command, seconds=_SECONDS, environment=environment)
    return _collect(name, backend, folder, outcome)


def _collect(name: str, backend: str, folder: Path, outcome: Outcome) -> Ran:
    if outcome.problem:
        said = f": {outcome.last_line}" if outcome.last_line else ""
        return Ran(name, backend, None, problem=outcome.problem + said)
    try:
        actions = np.load(folder / "actions.npy", allow_pickle=False)
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        return Ran(name, backend, None, problem=f"left no result: {cause}")
    return Ran(name, backend, actions, facts)


def check_backends(results: Sequence[Ran]) -> list[Finding]:
    """One finding for each backend. The scalar kernels are the reference of all others."""
    sound = [r for r in results if r.backend == "native" and _is_finite(r.actions)]
    reference = next((r for r in sound if r.name == "native scalar"), sound[0] if sound else None)
    return [_check(result, reference) for result in results]


def _is_finite(actions: np.ndarray | None) -> bool:
    return actions is not None and bool(np.isfinite(actions).all())


def _check(result: Ran, reference: Ran | None) -> Finding:
    facts = {**result.facts, "problem": result.problem}
    if result.actions is None:
        return _did_not_run(result, facts)
    took = _cost(result.facts)
    if not _is_finite(result.actions):
        facts["problem"] = "NaN or infinity"
        return _broken(result, f"{took}: NaN or infinity among the actions", facts)
    if reference is None or reference.actions is None or reference is result:
        what = "the others are compared with it" if reference is result else "nothing to compare"
        return Finding("backends", result.name, PASS, f"{took}; {what}", facts=facts)
    ours, theirs = result.actions, reference.actions
    if ours.shape != theirs.shape:
        message = f"{took}: shape {ours.shape}, {reference.name} gives {theirs.shape}"
        return _broken(result, message, facts)
    # Model space and robot units, each against its own largest value.
    error = max(map(_relative, ours, theirs))
    facts["relative_error"] = error
    if result.backend == "native":
        if ours.tobytes() == theirs.tobytes():
            message = f"{took}; actions equal {reference.name} in every byte"
            return Finding("backends", result.name, PASS, message, facts=facts)
        message = f"{took}; actions differ from {reference.name} by {error:.1e} of the largest"
        return _broken(result, message, facts)
    message = f"{took}; actions within {error:.1e} of {reference.name}'s largest"
    if error > TOLERANCE:
        return _broken(result, f"{message}, more than {TOLERANCE:g}", facts)
    return Finding("backends", result.name, PASS, message, facts=facts)


def _cost(facts: Mapping[str, Any]) -> str:
    """What a backend said of itself, in words."""
    words = f"ran a tiny policy in {facts.get('ms', 0):.1f} ms"
    if "torch" in facts:
        words = f"torch {facts['torch']} {words}"
    if "threads" in facts:
        words += f" on {facts['threads']} threads"
    if "gflops" in facts:
        words += f", {facts['gflops']:.0f} GFLOP/s a thread in registers"
    return words


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    error, largest = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    return error / largest if largest > 0 else error


def _broken(result: Ran, message: str, facts: dict[str, Any]) -> Finding:
    remedy = (
        "do not use it for a robot; report this with the output of 'smolvla-edge doctor --json' "
        "and 'smolvla-edge inspect --kernels'"
    )
    return Finding("backends", result.name, FAIL, message, remedy, facts)


def _did_not_run(result: Ran, facts: dict[str, Any]) -> Finding:
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

"""Every CUDA operator beside what torch, bitsandbytes and our Triton kernels do at its shapes.

    python -m benchmarks.micro --gpu
    python -m benchmarks.micro --gpu --only expert
    python -m benchmarks.micro --gpu --try          tiny shapes on the CPU: does it run?

Cold and warm L2, products and copies as ceilings in the same run; see clock.py for how.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import collect
from benchmarks.engines import ROOT
from benchmarks.gpu import ceilings, machine
from benchmarks.gpu.cases import cases, trial_cases
from benchmarks.gpu.clock import COLD_TIMES_L2, DeviceClock, HostClock
from benchmarks.gpu.contest import Case, hold
from benchmarks.harness import log
from benchmarks.report import FORMAT
from benchmarks.store import save


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.micro --gpu", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--gpu", action="store_true", help="these benchmarks")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument(
        "--milliseconds", type=float, default=40.0, help="to measure one contestant for, each way"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="then the remaining cases are left out, by name"
    )
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    parser.add_argument("--device-name", help="file name in benchmarks/results")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results alone")
    parser.add_argument(
        "--try", dest="trial", action="store_true",
        help="tiny shapes on the CPU, to see that the program runs; nothing is saved",
    )  # fmt: skip
    return parser.parse_args(arguments)


def measure(chosen: list[Case], clock: Any, deadline: float) -> tuple[list[dict[str, Any]], str]:
    """(entries, why it stopped early or ""). A contestant that fails is an entry with its error."""
    entries: list[dict[str, Any]] = []
    for case in chosen:
        if time.monotonic() > deadline:
            return entries, f"no time was left for {case.name} and what follows"
        for one in case.contestants:
            torch.manual_seed(20)
            try:
                entry = hold(case, one, clock)
            except Exception as error:
                message = f"{type(error).__name__}: {error}"[:400]
                entry = {
                    "case": case.name, "op": case.op, "by": one.by, "precision": one.precision,
                    "ours": one.is_ours, "failed": message,
                }  # fmt: skip
            entries.append(entry)
            log(f"  {case.name:24s} {one.by:30s} {_word(entry)}")
            if "failed" in entry and not _alive():
                return entries, f"{one.by} in {case.name} broke the device: {entry['failed']}"
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return entries, ""


def _word(entry: dict[str, Any]) -> str:
    if "cold" in entry:
        return f"{entry['cold']['median_us']:9.2f} us cold {entry['warm']['median_us']:9.2f} warm"
    return f"failed: {entry['failed']}" if "failed" in entry else f"skipped: {entry['skipped']}"


def _alive() -> bool:
    """Whether the device still answers: after an illegal access nothing works any more."""
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def run(options: argparse.Namespace) -> dict[str, Any]:
    conditions = collect(ROOT, "benchmarks.micro")
    device = "cpu" if options.trial else "cuda"
    torch.backends.cuda.matmul.allow_tf32 = False
    if options.trial:
        gpu: dict[str, Any] = {"name": "no GPU: a trial on the CPU", "smi": {}}
        clock: Any = HostClock()
        chosen = trial_cases(device)
    else:
        gpu = machine.describe()
        clock = DeviceClock(options.milliseconds)
        chosen = cases(device, options.only)
    start = time.monotonic()
    with torch.no_grad():
        found = ceilings.measure(clock, device, scale=64 if options.trial else 1)
        log(f"ceilings: {found}")
        entries, stopped = measure(chosen, clock, start + 60 * options.minutes)
    after = {} if options.trial else machine.smi()
    failed = [f"{e['by']} in {e['case']}: {e['failed']}" for e in entries if "failed" in e]
    notes = [*filter(None, [stopped]), *failed]
    return {
        "format": FORMAT,
        "kind": "gpu_micro",
        "title": f"Single operations on {gpu['name']}",
        "about": "CUDA operators beside torch's and others' at SmolVLA's shapes.",
        "conditions": conditions,
        "gpu": {**gpu, "smi_after": after},
        "settings": {
            "cold": f"operands in turn, {COLD_TIMES_L2} times the L2 between two uses of one",
            "warm": "the same operands each time",
            "time": "CUDA graphs of 32 calls, or of so many as take 2 ms, replayed, between two "
            f"events; median replay over {options.milliseconds:g} ms",
        },
        "engines": {},
        "ceilings": found,
        "results": entries,
        "stopped": stopped,
        "noise": notes,
        "quiet": not notes,
    }


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        result = run(options)
    except RuntimeError as error:
        log(f"error: {error}")
        return 1
    unsaved = options.trial or options.no_save
    name = options.device_name or f"{machine.slug(result['gpu']['name'])}-micro"
    save(result, None if unsaved else name, options.json)
    # What a rival cannot do is in the table; what ours cannot is a failure, and so is an early end.
    ours = [e for e in result["results"] if e["ours"] and "failed" in e]
    return 1 if ours or result["stopped"] else 0


if __name__ == "__main__":
    sys.exit(main())
